"""Pipeline folders with random weights: `python scripts/random_models.py sdxl FOLDER` (--tiny for tests).

Every configuration value that tells the published layouts apart is theirs (textcraftor/models/layouts); --tiny shrinks
widths and depths alone. `small` is nobody's: a UNet of 25 million weights, for figures from a laptop. The benchmark
takes models and scorers from here without writing them.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from transformers import (
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
)

from textcraftor.models.layout import build_pipeline, layouts, read_layout
from textcraftor.models.loading import frozen
from textcraftor.models.model import family_of
from textcraftor.rewards.aesthetic import Aesthetic, LinearHead
from textcraftor.rewards.clip import ClipScore, PickScore
from textcraftor.rewards.hpsv2 import HPSv2
from textcraftor.rewards.open_clip import architecture_config

TOKENIZER = Path(__file__).parent.parent / "textcraftor" / "toybox" / "weights" / "pipeline" / "tokenizer"
SMALL = {
    "text_encoder": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4},
    "unet": {
        "sample_size": 32,
        "block_out_channels": [64, 128, 192, 224],
        "attention_head_dim": 4,
        "cross_attention_dim": 256,
    },
    "vae": {"block_out_channels": [32, 64, 128, 128]},
}
# What is smaller of each kind of part with --tiny; every width that another part relies on is 32 a text encoder.
TINY_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
TINY_UNET = {"layers_per_block": 1, "norm_num_groups": 4}
TINY: dict[str, dict[str, Any]] = {
    "CLIPTextModel": TINY_CLIP | {"projection_dim": 32},
    "CLIPTextModelWithProjection": TINY_CLIP | {"projection_dim": 32},
    "T5EncoderModel": {"d_model": 64, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4},
    "Qwen3ForCausalLM": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 28,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 512,
    },
    "AutoencoderKL": {"block_out_channels": [4, 4, 8, 8], "layers_per_block": 1, "norm_num_groups": 4},
    "AutoencoderKLFlux2": {"block_out_channels": [4, 4, 8, 8], "layers_per_block": 1, "norm_num_groups": 4},
}
TINY_DENOISERS: dict[str, dict[str, Any]] = {
    "sd15": TINY_UNET | {"block_out_channels": [8, 16, 16, 16], "cross_attention_dim": 32},
    "sd21": TINY_UNET
    | {"block_out_channels": [8, 16, 16, 16], "cross_attention_dim": 32, "attention_head_dim": [2, 2, 4, 4]},
    "sdxl": TINY_UNET
    | {
        "block_out_channels": [8, 16, 16],
        "attention_head_dim": [2, 2, 4],
        "transformer_layers_per_block": [1, 1, 2],
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 32 + 6 * 4,
    },
    "sd35_medium": {
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 32,
        "dual_attention_layers": [0],
    },
    "flux1_dev": {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
        "axes_dims_rope": [4, 4, 8],
    },
    "flux2_klein": {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "timestep_guidance_channels": 16,
        "axes_dims_rope": [4, 4, 4, 4],
    },
}
TINY_DENOISERS["flux1_schnell"] = TINY_DENOISERS["flux1_dev"]
CHAT = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}<|im_start|>"


def shrunk(layout: Mapping[str, Any], smaller: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A layout with some of its parts' settings replaced."""
    changed = copy.deepcopy(dict(layout))
    for part, settings in smaller.items():
        changed[part] |= settings
    return changed


def tiny_layout(name: str) -> dict[str, Any]:
    """A published layout with small widths and depths, for the tests' tokenizers."""
    layout = read_layout(name)
    smaller: dict[str, dict[str, Any]] = {}
    for part, config in layout.items():
        if isinstance(config, dict) and config["_class_name"] in TINY:
            smaller[part] = dict(TINY[config["_class_name"]])
    denoiser = "unet" if "unet" in layout else "transformer"
    smaller[denoiser] = TINY_DENOISERS[name]
    for part, kind in layout.items():
        if part.startswith("tokenizer"):
            reader = part.replace("tokenizer", "text_encoder")
            smaller[reader] = {**smaller[reader], **special_tokens(tokenizer_of(kind))}
            if kind == "CLIPTokenizer":
                smaller[reader]["max_position_embeddings"] = tokenizer_of(kind).model_max_length
    return shrunk(layout, smaller)


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """What a text encoder's configuration says of its tokenizer."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    known = {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name) is not None}
    return {"vocab_size": len(tokenizer), **known}


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a class: the toybox's for CLIP, the signs of ASCII for the others."""
    signs = [chr(code) for code in range(33, 127)]
    match kind:
        case "CLIPTokenizer":
            return CLIPTokenizer.from_pretrained(TOKENIZER)
        case "T5TokenizerFast":
            pieces = ["<pad>", "</s>", "<unk>", "\u2581", *signs]
            model = Tokenizer(Unigram([(piece, -float(rank)) for rank, piece in enumerate(pieces)], unk_id=2))
            model.pre_tokenizer = pre_tokenizers.Metaspace()
            model.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
            return PreTrainedTokenizerFast(
                tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
            )
        case _:
            special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
            alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
            model = Tokenizer(BPE({sign: rank for rank, sign in enumerate([*special, *alphabet])}, []))
            model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            model.decoder = decoders.ByteLevel()
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=model, pad_token=special[0], eos_token=special[2], model_max_length=512
            )
            tokenizer.chat_template = CHAT
            return tokenizer


def make_pipeline(name: str, tiny: bool = False, **flags: Any) -> DiffusionPipeline:
    """A pipeline with random weights, the same ones each time.

    Args:
        flags: of the layout itself, as is_distilled=False.
    """
    torch.manual_seed(0)
    layout = shrunk(read_layout("sd15"), SMALL) if name == "small" else read_layout(name)
    layout = (tiny_layout(name) if tiny else layout) | flags
    tokenizers = {part: tokenizer_of(kind) for part, kind in layout.items() if part.startswith("tokenizer")}
    if not tiny:  # the tests' tokenizers know few of the published tokens
        for part, kind in layout.items():
            if kind == "CLIPTokenizer":
                reader = part.replace("tokenizer", "text_encoder")
                own = special_tokens(tokenizers[part])
                layout[reader] = layout[reader] | {key: own[key] for key in ("bos_token_id", "eos_token_id")}
    return build_pipeline(layout, tokenizers)


def load_model(
    path: str, device: str = "cpu", dtypes: Mapping[str, torch.dtype] | None = None, config: str | None = None
) -> DiffusionPipeline:
    """As `textcraftor.models.loading.load_pipeline`, with the name of a layout, `tiny-` before it for a small one.

    A large one's weights are drawn on the device, in their precision: on CPUs that would take minutes.
    """
    dtype, name = (dtypes or {}).get("default", torch.float32), path.removeprefix("tiny-")
    before = torch.get_default_dtype()
    with torch.device("cpu" if path != name else device):
        torch.set_default_dtype(torch.float32 if path != name else dtype)
        try:
            pipeline = make_pipeline(name, tiny=path != name)
        finally:
            torch.set_default_dtype(before)
    pipeline.to(device, dtype)
    for part, own in (dtypes or {}).items():
        module = getattr(pipeline, family_of(type(pipeline).__name__).denoiser if part == "denoiser" else part, None)
        if module is not None:
            module.to(own)
    return frozen(pipeline)


def _clip(architecture: str) -> tuple[CLIPModel, CLIPTokenizer]:
    return CLIPModel(architecture_config(architecture)), CLIPTokenizer.from_pretrained(TOKENIZER)


def load_aesthetic(architecture: str) -> Aesthetic:
    config = architecture_config(architecture)
    return Aesthetic(CLIPVisionModelWithProjection(config.vision_config), LinearHead(config.projection_dim))


def load_hpsv2(architecture: str) -> HPSv2:
    return HPSv2(*_clip(architecture))


def load_pickscore(architecture: str) -> PickScore:
    return PickScore(*_clip(architecture))


def load_clip(architecture: str) -> ClipScore:
    return ClipScore(*_clip(architecture))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layout", choices=["small", *layouts()])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    make_pipeline(arguments.layout, arguments.tiny).save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
