"""What learns: a copy of the text encoder beside the original, and how it is saved and loaded."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel

from textcraftor.errors import UsageError
from textcraftor.models.stable_diffusion import StableDiffusion

PREFIX = "text_model."


def add_trainable_text_encoder(model: StableDiffusion, name: str = "tuned") -> nn.Module:
    """Copy the original text encoder under a new name, in fp32 and with gradients; everything else stays frozen."""
    tuned = copy.deepcopy(model.text_encoders["original"]).float().requires_grad_(True)
    model.text_encoders[name] = tuned
    return tuned


def save_text_encoder(encoder: CLIPTextModel, folder: Path) -> None:
    """Write a diffusers `text_encoder/` folder, with the published `text_model.` key names.

    transformers 5 leaves the prefix out, and whatever expects it then loads random weights with only a warning.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoder.config.save_pretrained(folder)
    state = {
        key if key.startswith(PREFIX) else PREFIX + key: value.detach().cpu().contiguous()
        for key, value in encoder.state_dict().items()
        if not key.endswith("position_ids")
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def load_text_encoder(model: StableDiffusion, folder: Path, name: str) -> None:
    """Add a tuned encoder from a `text_encoder/` folder to a model, frozen.

    Raises:
        UsageError: no such folder, keys missing, or an encoder of another shape than the model's own.
    """
    if not (folder / "model.safetensors").exists():
        raise UsageError(f"{folder} holds no model.safetensors: give the folder of a finished run")
    theirs, ours = json.loads((folder / "config.json").read_text()), model.text_encoders["original"].config
    for key in ("hidden_size", "num_hidden_layers", "vocab_size"):
        if theirs.get(key) != getattr(ours, key):
            raise UsageError(
                f"{folder}: {key}={theirs.get(key)} but the model's text encoder has {getattr(ours, key)}: "
                "this encoder was tuned for another base model"
            )
    encoder, info = CLIPTextModel.from_pretrained(
        folder, dtype=model.unet.dtype, output_loading_info=True, use_safetensors=True
    )
    if info["missing_keys"]:
        raise UsageError(f"{folder}: key {sorted(info['missing_keys'])[0]} is missing from model.safetensors")
    model.text_encoders[name] = encoder.to(model.device).eval().requires_grad_(False)
