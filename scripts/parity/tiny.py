"""The published layouts at toy size, with weights by formula: for golden figures and for the tests that use them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SIDE, EMBED = 32, 32  # of the preprocessed picture in pixels; features of an embedding
WIDTH, HEADS, LAYERS, PATCH, CONTEXT = 64, 2, 2, 8, 16
MERGES = (
    "t h", "th e</w>", "a n", "an d</w>", "r e", "re d</w>", "i n", "in g</w>", "s t", "st a", "sta r</w>", "o n</w>",
    "c i", "ci r", "cir c", "circ l", "circl e</w>", "b l", "bl u", "blu e</w>", "1 2", "' s</w>", ". .</w>",
)  # fmt: skip
WORDS = ("a", "the", "red", "blue", "star", "circle", "on", "with", "word", "it", "##s", "##ed", "##ing", "##tar")
BERT_CONTEXT, BLIP_WIDTH, BLIP_PATCH, TEXT_WIDTH = 40, 128, 16, 64

PROMPTS = ("a red circle and a blue star", "“curly” red &amp; blue, it’s", "the star " * 20)
TOKEN_PROMPTS = (
    *PROMPTS,
    "",
    "  spaces\tand\nlines  ",
    "UPPER lower MiXeD 12 2026",
    "&amp;amp; twice &lt;3",
    "café naïve: 雪 😀",
    "e\u0301 combining, ﬁ ligature, ＡＢＣ",
    "mojibake: sÃ£o",
    "it's we'll I'm",
    "[ENC] [CLS] <|endoftext|> after",
)


def values(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights that depend on nothing but their names: normal, scaled so that every layer matters."""
    state = {}
    for name, shape in shapes.items():
        draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if name == "logit_scale":
            draw = np.float64(3.0)
        elif len(shape) == 1:
            draw = 0.1 * draw + (1.0 if name.endswith("weight") else 0.0)
        elif "emb" in name or name.endswith("_token"):
            draw = 0.5 * draw
        elif name.endswith(("proj", "text_projection")):  # used transposed
            draw = draw / shape[0] ** 0.5
        else:
            draw = 1.5 * draw / np.prod(shape[1:]) ** 0.5
        state[name] = torch.tensor(draw, dtype=torch.float32)
    return state


def layer(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def transformer(prefix: str) -> dict[str, tuple[int, ...]]:
    """open_clip's blocks."""
    shapes: dict[str, tuple[int, ...]] = {}
    for block in (f"{prefix}.resblocks.{index}" for index in range(LAYERS)):
        shapes |= norm(f"{block}.ln_1", WIDTH) | norm(f"{block}.ln_2", WIDTH)
        shapes |= {f"{block}.attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{block}.attn.in_proj_bias": (3 * WIDTH,)}
        shapes |= layer(f"{block}.attn.out_proj", WIDTH, WIDTH)
        shapes |= layer(f"{block}.mlp.c_fc", 4 * WIDTH, WIDTH) | layer(f"{block}.mlp.c_proj", WIDTH, 4 * WIDTH)
    return shapes


def open_clip_state() -> dict[str, Tensor]:
    """A CLIP under open_clip's key names."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": ((SIDE // PATCH) ** 2 + 1, WIDTH),
        "visual.proj": (WIDTH, EMBED),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        "positional_embedding": (CONTEXT, WIDTH),
        "text_projection": (WIDTH, EMBED),
        "token_embedding.weight": (vocabulary_size(), WIDTH),
        "logit_scale": (),
    }
    shapes |= norm("visual.ln_pre", WIDTH) | norm("visual.ln_post", WIDTH) | norm("ln_final", WIDTH)
    return values(shapes | transformer("visual.transformer") | transformer("transformer"))


def vocabulary_size() -> int:
    """Bytes, bytes at a word's end, merges, start and end."""
    return 512 + len(MERGES) + 2


def open_clip_architecture(quick_gelu: bool) -> dict[str, Any]:
    """The arguments of open_clip's CLIP class."""
    return {
        "embed_dim": EMBED,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": SIDE, "layers": LAYERS, "width": WIDTH, "head_width": WIDTH // HEADS, "patch_size": PATCH,
        },
        "text_cfg": {
            "context_length": CONTEXT, "vocab_size": vocabulary_size(), "width": WIDTH, "heads": HEADS,
            "layers": LAYERS,
        },
    }  # fmt: skip


def clip_config(quick_gelu: bool) -> dict[str, Any]:
    """The same architecture as transformers' CLIPConfig."""
    tower = {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "projection_dim": EMBED, "hidden_act": "quick_gelu" if quick_gelu else "gelu",
    }  # fmt: skip
    text = {
        "max_position_embeddings": CONTEXT, "vocab_size": vocabulary_size(), "eos_token_id": vocabulary_size() - 1,
        "bos_token_id": vocabulary_size() - 2, "pad_token_id": vocabulary_size() - 1,
    }  # fmt: skip
    return {
        "model_type": "clip",
        "projection_dim": EMBED,
        "vision_config": tower | {"image_size": SIDE, "patch_size": PATCH},
        "text_config": tower | text,
    }


def head_state(width: int, prefix: str = "") -> dict[str, Tensor]:
    """LAION's head v2, which is ImageReward's too."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, inputs, outputs in zip((0, 2, 4, 6, 7), (width, 1024, 128, 64, 16), (1024, 128, 64, 16, 1), strict=True):
        shapes |= layer(f"{prefix}layers.{index}", outputs, inputs)
    return values(shapes)


def linear_head_state() -> dict[str, Tensor]:
    """LAION's head v1."""
    return values({"weight": (1, EMBED), "bias": (1,)})


def image_reward_state() -> dict[str, Tensor]:
    """ImageReward under its own key names."""
    vision, text = "blip.visual_encoder", "blip.text_encoder"
    shapes: dict[str, tuple[int, ...]] = {
        f"{vision}.cls_token": (1, 1, BLIP_WIDTH),
        f"{vision}.pos_embed": (1, (SIDE // BLIP_PATCH) ** 2 + 1, BLIP_WIDTH),
        f"{vision}.patch_embed.proj.weight": (BLIP_WIDTH, 3, BLIP_PATCH, BLIP_PATCH),
        f"{vision}.patch_embed.proj.bias": (BLIP_WIDTH,),
        f"{text}.embeddings.word_embeddings.weight": (len(bert_vocabulary()) + 2, TEXT_WIDTH),
        f"{text}.embeddings.position_embeddings.weight": (BERT_CONTEXT, TEXT_WIDTH),
    }
    shapes |= norm(f"{vision}.norm", BLIP_WIDTH) | norm(f"{text}.embeddings.LayerNorm", TEXT_WIDTH)
    for block in (f"{vision}.blocks.{index}" for index in range(LAYERS)):
        shapes |= norm(f"{block}.norm1", BLIP_WIDTH) | norm(f"{block}.norm2", BLIP_WIDTH)
        shapes |= layer(f"{block}.attn.qkv", 3 * BLIP_WIDTH, BLIP_WIDTH)
        shapes |= layer(f"{block}.attn.proj", BLIP_WIDTH, BLIP_WIDTH)
        shapes |= layer(f"{block}.mlp.fc1", 4 * BLIP_WIDTH, BLIP_WIDTH)
        shapes |= layer(f"{block}.mlp.fc2", BLIP_WIDTH, 4 * BLIP_WIDTH)
    for index in range(LAYERS):
        shapes |= bert_layer(f"{text}.encoder.layer.{index}")
    shapes |= layer("blip.vision_proj", 256, BLIP_WIDTH) | layer("blip.text_proj", 256, TEXT_WIDTH)  # never used
    return values(shapes) | head_state(TEXT_WIDTH, "mlp.")


def bert_layer(name: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for attention, seen in (("attention", TEXT_WIDTH), ("crossattention", BLIP_WIDTH)):
        shapes |= layer(f"{name}.{attention}.self.query", TEXT_WIDTH, TEXT_WIDTH)
        shapes |= layer(f"{name}.{attention}.self.key", TEXT_WIDTH, seen)
        shapes |= layer(f"{name}.{attention}.self.value", TEXT_WIDTH, seen)
        shapes |= layer(f"{name}.{attention}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
        shapes |= norm(f"{name}.{attention}.output.LayerNorm", TEXT_WIDTH)
    shapes |= layer(f"{name}.intermediate.dense", 4 * TEXT_WIDTH, TEXT_WIDTH)
    return (
        shapes
        | layer(f"{name}.output.dense", TEXT_WIDTH, 4 * TEXT_WIDTH)
        | norm(f"{name}.output.LayerNorm", TEXT_WIDTH)
    )


def med_config() -> dict[str, Any]:
    """ImageReward's med_config.json."""
    return {
        "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": TEXT_WIDTH, "initializer_range": 0.02,
        "intermediate_size": 4 * TEXT_WIDTH, "layer_norm_eps": 1e-12, "max_position_embeddings": BERT_CONTEXT,
        "model_type": "bert", "num_attention_heads": 2, "num_hidden_layers": LAYERS, "pad_token_id": 0,
        "add_type_embeddings": False, "vocab_size": len(bert_vocabulary()) + 2, "encoder_width": 768,
        "add_cross_attention": True,
    }  # fmt: skip


def crnn_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """EasyOCR's English network by its own key names; what batch norms keep as it starts."""
    kept = ("running_mean", "running_var", "num_batches_tracked")
    state = values({key: shape for key, shape in shapes.items() if not key.endswith(kept)})
    starts = {"running_mean": torch.zeros, "running_var": torch.ones, "num_batches_tracked": torch.zeros}
    return state | {key: starts[key.rpartition(".")[2]](shape) for key, shape in shapes.items() if key.endswith(kept)}


def line() -> Tensor:
    """A preprocessed line, (1, 1, 64, 96)."""
    y, x = np.mgrid[0:64, 0:96]
    return torch.tensor(np.sin(x / 3 + y / 7) * np.cos(y / 4 - x / 9), dtype=torch.float32)[None, None]


def blip_sizes() -> dict[str, int]:
    """What the reference runner makes the package's classes with."""
    return {
        "img_size": SIDE, "patch_size": BLIP_PATCH, "embed_dim": BLIP_WIDTH, "depth": LAYERS, "num_heads": 2,
        "text_width": TEXT_WIDTH,
    }  # fmt: skip


def bert_vocabulary() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*letters, *(f"##{letter}" for letter in letters), *".,:;!?'\"&<>#-|[]"]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *(word for word in WORDS if word not in pieces)]


def write_bert_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in bert_vocabulary()), encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_bpe(file: Path) -> None:
    """CLIP's vocabulary file: no line break at the end, or open_clip counts one more merge."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress("\n".join(["#version: 0.2", *MERGES]).encode(), mtime=0))


def pictures() -> list[np.ndarray]:
    """uint8 (height, width, 3): one that leaves three columns too many, one upright with hard edges, one enlarged."""
    found = []
    for height, width in ((64, 70), (61, 40), (20, 24)):
        y, x = np.mgrid[0:height, 0:width]
        wave = [np.sin(x / (3 + c) + y / 7) * np.cos(y / (4 + c) - x / 9) for c in range(3)]
        picture = 127.5 + 127.5 * np.stack(wave, -1)
        picture[(x // 8 + y // 6) % 3 == 0] = (255, 0, 64)
        found.append(picture.round().astype(np.uint8))
    return found


def sample(pixels: np.ndarray, count: int = 48) -> np.ndarray:
    """A few values from everywhere in an array."""
    return pixels.reshape(-1)[np.linspace(0, pixels.size - 1, count).astype(int)]
