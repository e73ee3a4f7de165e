"""Trains the toybox's text recogniser, in TrOCR's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor, nn
from toybox_eyes import load
from toybox_ratings import scene, spoil
from transformers import (
    PreTrainedTokenizerFast,
    TrOCRConfig,
    TrOCRForCausalLM,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from textcraftor.rewards.trocr import TrOCR
from textcraftor.toybox.world2.scenes import IMAGE_SIZE, LETTER_CELL, LETTERS, ROWS, WORD_LENGTHS
from textcraftor.training.fitting import FitSettings, fit

OCR_PROCESSING = {
    "size": {"height": LETTER_CELL, "width": IMAGE_SIZE},
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def new_letter_tokenizer() -> PreTrainedTokenizerFast:
    """Capitals one by one, saved as any fast tokenizer is."""
    tokenizer = Tokenizer(
        WordLevel({"</s>": 0, "<pad>": 1, **{letter: 2 + i for i, letter in enumerate(LETTERS)}}, unk_token="<pad>")
    )
    tokenizer.pre_tokenizer = Split(Regex("."), behavior="isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")


def new_recogniser(width: int = 96) -> TrOCR:
    """TrOCR's layout on one row of the picture: a vision transformer and a decoder that writes letter by letter."""
    tokenizer = new_letter_tokenizer()
    encoder = ViTConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=width // 32,
        image_size=[LETTER_CELL, IMAGE_SIZE],
        patch_size=[LETTER_CELL, 4],  # columns, four to a letter
    )
    decoder = TrOCRConfig(
        d_model=width,
        decoder_ffn_dim=4 * width,
        decoder_layers=2,
        decoder_attention_heads=width // 32,
        cross_attention_hidden_size=width,
        vocab_size=len(tokenizer),
        max_position_embeddings=8,
        dropout=0.0,
        decoder_start_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        is_decoder=True,
        add_cross_attention=True,
    )
    model = VisionEncoderDecoderModel(encoder=ViTModel(encoder), decoder=TrOCRForCausalLM(decoder))
    nn.init.normal_(model.encoder.embeddings.position_embeddings, std=0.3)  # told apart from the first step on
    return TrOCR(model, tokenizer, OCR_PROCESSING)


def rows_to_read(pictures: Tensor, numbers: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
    """One row of each picture and what stands in it: mostly the word's own, else any other, in which nothing stands."""
    tops = np.arange(0, IMAGE_SIZE - LETTER_CELL + 1, LETTER_CELL // 2)
    crops, texts = list[Tensor](), list[str]()
    for picture, number in zip(pictures, numbers, strict=True):
        word = scene(int(number)).word
        own = ROWS[word.row] if word else None
        top = own if word and rng.random() < 0.65 else int(rng.choice(tops))
        crops.append(picture[:, top : top + LETTER_CELL])
        texts.append(word.text if word and top == own else "")
    return torch.stack(crops), texts


def train_recogniser(work: Path, device: str, steps: int = 2500, batch: int = 64, spoiled: int = 4096) -> None:
    """On rows of rendered scenes, half of them spoiled by the autoencoder; fading and noise for half written words."""
    rendered = np.load(work / "scenes.npy", mmap_mode="r")
    vae = AutoencoderKL.from_pretrained(work / "vae", dtype=torch.float32)
    with torch.no_grad():
        parts = [
            spoil(load(rendered, np.arange(start, start + 64)), vae, np.random.default_rng((15, start)))
            for start in range(0, spoiled, 64)
        ]
    melted = (torch.cat(parts) * 255).round().byte()
    torch.manual_seed(0)
    recogniser = new_recogniser().to(device).requires_grad_(True).train()
    cells = nn.Linear(recogniser.model.config.encoder.hidden_size, len(LETTERS) + 1).to(device)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((71, step))
        fresh, worn = rng.integers(len(rendered), size=batch // 2), rng.integers(spoiled, size=batch // 2)
        pictures = torch.cat([load(rendered, np.sort(fresh)), melted[torch.from_numpy(worn)].float() / 255])
        crops, texts = rows_to_read(pictures, np.concatenate([np.sort(fresh), worn]), rng)
        ground = crops.flatten(2).median(-1).values[..., None, None]
        hard = min(1.0, step / (steps / 2))
        fade = torch.from_numpy(rng.uniform(1 - 0.6 * hard, 1, (batch, 1, 1, 1))).float()
        noise = torch.from_numpy(rng.uniform(0, 0.1 * hard, (batch, 1, 1, 1))).float()
        crops = (ground + fade * (crops - ground) + noise * torch.randn_like(crops)).clamp(0, 1).to(device)
        seen = recogniser.encode(recogniser.pixels(crops))
        # A decoder alone finds out slowly where in the picture its letters stand: the encoder is told, cell by cell.
        named = cells(seen[:, 1:].unflatten(1, (-1, seen.shape[1] // max(WORD_LENGTHS))).mean(2))
        padded = [[*map(LETTERS.index, text), *[len(LETTERS)] * (max(WORD_LENGTHS) - len(text))] for text in texts]
        return {
            "nll": -recogniser.log_likelihood(seen, texts).mean(),
            "cells": nn.functional.cross_entropy(named.transpose(1, 2), torch.tensor(padded, device=device)),
        }

    learning = nn.ModuleDict({"recogniser": recogniser, "cells": cells})
    fit("recogniser", learning, loss_of, FitSettings(steps, 1e-3, weight_decay=0.05, ema_decay=0.99), work)
    recogniser.model.save_pretrained(work / "recogniser")
    recogniser.tokenizer.save_pretrained(work / "recogniser")
    (work / "recogniser" / "preprocessor_config.json").write_text(json.dumps(OCR_PROCESSING, indent=2))
