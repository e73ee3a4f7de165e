"""Tiny language models in the published formats, with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    CLIPImageProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2TokenizerFast,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

PART = "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}"
TEMPLATE = f"{{% for m in messages %}}{{% for c in m.content %}}{PART}{{% endfor %}}{{% endfor %}}"


def byte_level_tokenizer(folder: Path, texts: Iterable[str], size: int) -> PreTrainedTokenizerBase:
    """A tokenizer of these texts' words that gives any text back letter by letter; saved to the folder too."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=size, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save(str(folder / "tokenizer.json"))
    tokenizer = GPT2TokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_gpt2(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A language model beside its tokenizer."""
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=96, n_embd=64, n_layer=2, n_head=2, bos_token_id=end, eos_token_id=end
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)


def save_llava(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """An image-to-text model that answers messages, with its processor."""
    torch.manual_seed(0)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.pad_token = tokenizer.eos_token
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16, "projection_dim": 32}
    text = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": len(tokenizer), "initializer_range": 0.5}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    image = {"image_token_index": tokenizer.convert_tokens_to_ids("<image>"), "vision_feature_layer": -1}
    config = LlavaConfig(vision_config=vision, text_config=text, **image)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
