"""Folders of transformers in published layouts at toy size, weights random: what tests of further scorers load."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import PreTrainedConfig, PreTrainedModel, SiglipConfig, SiglipModel

SENTENCES = ("a red circle and a blue star", "does this figure show the word", "please answer yes or no")
SIDE, PATCH, WIDTH = 32, 8, 32  # of a preprocessed picture and its patches in pixels, of a state in features
TOWER = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_json(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=1))


def write_model(kind: type[PreTrainedModel], config: PreTrainedConfig, folder: Path, scale: float = 3.0) -> None:
    """A model whose random weights are `scale` times as large as usual, so that every layer matters."""
    torch.manual_seed(0)
    model = kind(config)
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
