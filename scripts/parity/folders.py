"""Folders of transformers in published layouts at toy size, weights random: what tests of further scorers load."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from parity import tiny
from textcraftor.rewards.aesthetic import PUBLISHED_WIDTHS
from textcraftor.rewards.mps import LAYERS, CrossModel, Rotary

SENTENCES = ("a red circle and a blue star", "does this figure show the word", "please answer yes or no", "Yes No")
SIDE, PATCH, WIDTH = 32, 8, 32  # of a preprocessed picture and its patches in pixels, of a state in features
TOWER = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_json(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=1))


def write_model(kind: type[PreTrainedModel], config: PreTrainedConfig, folder: Path, scale: float = 3.0) -> None:
    """A model whose random weights are `scale` times as large as usual, so that every layer matters."""
    torch.manual_seed(0)
    model = kind.from_config(config) if kind is AutoModelForImageTextToText else kind(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "position" not in name:
                weight.mul_(scale)
    model.save_pretrained(folder)


def write_siglip(folder: Path, context: int = 16) -> None:
    """As google/siglip-so400m-patch14-384: config, weights, a SentencePiece vocabulary, the image processor's file."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([word for sentence in SENTENCES for word in (sentence, *sentence.split())]),
        model_writer=vocabulary, vocab_size=48, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(vocabulary.getvalue())
    special = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(
        folder / "tokenizer_config.json",
        special | {"tokenizer_class": "SiglipTokenizer", "model_max_length": context, "do_lower_case": True},
    )
    size = {"height": SIDE, "width": SIDE}
    processor = {"image_processor_type": "SiglipImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    write_json(folder / "preprocessor_config.json", processor | {"size": size, "resample": 3})
    ends = {"pad_token_id": 1, "eos_token_id": 1, "bos_token_id": None}
    text = TOWER | ends | {"vocab_size": 64, "max_position_embeddings": context, "projection_size": WIDTH}
    vision = TOWER | {"image_size": SIDE, "patch_size": PATCH}
    write_model(SiglipModel, SiglipConfig(text_config=text, vision_config=vision), folder)


def write_v25_head(file: Path, width: int = WIDTH) -> None:
    """Aesthetic Predictor V2.5's head, in bfloat16 as published."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, inputs, outputs in zip((0, 2, 4, 6, 8), (width, *PUBLISHED_WIDTHS), PUBLISHED_WIDTHS, strict=False):
        shapes |= tiny.layer(f"scoring_head.{index}", outputs, inputs)
    state = OrderedDict((key, value.bfloat16()) for key, value in tiny.values(shapes).items())
    torch.save(state, file)


QWEN_SIGNS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
# The published templates, for one message with one picture.
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a "
    "helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% for content in "
    "message['content'] %}{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>"
    "assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for content in message['content'] | "
    "selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{% for content in message['content'] | "
    "selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def write_byte_tokenizer(folder: Path, kind: str, signs: tuple[str, ...], begins: str | None, **said: Any) -> int:
    """A byte-level BPE, its special tokens last as in Qwen's; how many tokens it has."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(list(signs))
    if begins:
        start = (begins, tokenizer.token_to_id(begins))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{begins} $A", special_tokens=[start])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": kind, "pad_token": signs[0]} | said)
    return tokenizer.get_vocab_size()


def write_qwen_vl(folder: Path, family: str = "qwen2_vl") -> None:
    """As Qwen/Qwen2-VL-7B-Instruct and its successors; pictures of 28 x 28 to 84 x 84 pixels."""
    size = write_byte_tokenizer(folder, "Qwen2TokenizerFast", QWEN_SIGNS, None, chat_template=QWEN_TEMPLATE)
    write_json(folder / "chat_template.json", {"chat_template": QWEN_TEMPLATE})  # transformers 4 looks here
    processor = {"min_pixels": 28 * 28 * 4, "max_pixels": 28 * 28 * 9, "patch_size": 14, "temporal_patch_size": 2}
    processor |= {"merge_size": 2, "image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    write_json(folder / "preprocessor_config.json", processor | {"image_processor_type": "Qwen2VLImageProcessor"})
    ids = {sign: size - len(QWEN_SIGNS) + place for place, sign in enumerate(QWEN_SIGNS)}
    text = TOWER | {"vocab_size": size, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    text |= {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "pad_token_id": None}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}
    config = {
        "text_config": text,
        "vision_config": QWEN_VISION[family],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "tie_word_embeddings": False,
    }
    write_model(AutoModelForImageTextToText, AutoConfig.for_model(family, **config), folder)


def write_hpsv3(folder: Path) -> None:
    """Qwen2-VL's settings as their publishers wrote them, flat, and a checkpoint as HPSv3's, by older key names."""
    write_qwen_vl(folder)
    file = folder / "preprocessor_config.json"
    write_json(file, json.loads(file.read_text()) | {"min_pixels": 3136, "max_pixels": 12845056})
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    keep = [
        *TOWER, "vocab_size", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "bos_token_id",
        "eos_token_id",
    ]  # fmt: skip
    flat = config | {key: text[key] for key in keep}
    flat |= {"rope_theta": 1e4, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    for key in ("transformers_version", "dtype"):
        flat.pop(key, None)
    flat["vision_config"] = {"model_type": "qwen2_vl", **QWEN_VISION["qwen2_vl"], "in_chans": 3}
    write_json(folder / "config.json", flat)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state = {
        key.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value
        for key, value in state.items()
    }
    for key in ("model.embed_tokens.weight", "lm_head.weight"):  # one more token, <|Reward|>
        state[key] = torch.cat([state[key], state[key].mean(0, keepdim=True)])
    shapes: dict[str, tuple[int, ...]] = {}
    for index, inputs, outputs in zip((0, 3, 5), (WIDTH, 1024, 16), (1024, 16, 2), strict=True):
        shapes |= tiny.layer(f"rm_head.{index}", outputs, inputs)
    save_file(state | tiny.values(shapes), folder / "HPSv3.safetensors")


MPS_WIDTH = 128  # of the embedding: two heads


def mps_config() -> dict[str, Any]:
    config = tiny.clip_config(quick_gelu=False)
    towers = {name: config[name] | {"projection_dim": MPS_WIDTH} for name in ("text_config", "vision_config")}
    return config | towers | {"projection_dim": MPS_WIDTH}


def write_mps(file: Path) -> None:
    """MPS's state dict at toy size, and beside it the settings of its CLIP."""
    config = mps_config()
    write_json(file.with_suffix(".json"), config)
    clip, cross = CLIPModel(CLIPConfig.from_dict(config)), CrossModel(MPS_WIDTH, LAYERS)
    shapes = {f"model.{key}": tuple(value.shape) for key, value in clip.state_dict().items() if "_ids" not in key}
    for key, value in cross.state_dict().items():
        _, layer, block, rest = key.split(".", 3)
        shapes[f"cross_model.layers.{layer}.{block}.fn.{rest}"] = tuple(value.shape)
    state = tiny.values(shapes)
    state["model.text_projection.weight"][0] *= 10  # so that some words are like none of the condition
    state |= {key: Rotary().inv_freq for key in state if key.endswith("inv_freq")}
    save_file(state | {"model.logit_scale": torch.tensor(3.0)}, file)


_VISION = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN_VISION = {
    "qwen2_vl": _VISION | {"embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2},
    "qwen2_5_vl": _VISION | {
        "hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "window_size": 56,
        "fullatt_block_indexes": [1],
    },
    "qwen3_vl": _VISION | {
        "hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
        "num_position_embeddings": 36, "deepstack_visual_indexes": [0],
    },
}  # fmt: skip


def write_llava(folder: Path) -> None:
    """As llava-hf/llava-1.5-7b-hf; its chat template in a file of its own."""
    size = write_byte_tokenizer(folder, "PreTrainedTokenizerFast", ("<pad>", "<s>", "</s>", "<image>"), "<s>",
                                bos_token="<s>", eos_token="</s>", padding_side="left")  # fmt: skip
    write_json(folder / "chat_template.json", {"chat_template": LLAVA_TEMPLATE})
    processor = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3}
    processor |= {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    write_json(folder / "preprocessor_config.json", processor | {"image_processor_type": "CLIPImageProcessor"})
    taken = {"image_token": "<image>", "patch_size": PATCH, "vision_feature_select_strategy": "default"}
    write_json(
        folder / "processor_config.json",
        taken | {"num_additional_image_tokens": 1, "processor_class": "LlavaProcessor"},
    )
    text = TOWER | {"model_type": "llama", "vocab_size": size, "num_key_value_heads": 2}
    vision = TOWER | {"model_type": "clip_vision_model", "image_size": SIDE, "patch_size": PATCH}
    config = {"text_config": text, "vision_config": vision, "image_token_index": size - 1}
    write_model(AutoModelForImageTextToText, AutoConfig.for_model("llava", **config), folder)
