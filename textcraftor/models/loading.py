"""The model that a configuration names, on the device that it names."""

from __future__ import annotations

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from textcraftor.errors import UsageError
from textcraftor.models.stable_diffusion import StableDiffusion

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(config: DictConfig) -> StableDiffusion:
    """Build `config.model` on `config.device` in `config.dtype`; device `auto` takes a GPU where there is one."""
    if config.dtype not in DTYPES:
        raise UsageError(f"dtype={config.dtype} must be one of {', '.join(DTYPES)}")
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device={device}, but this machine or this build of torch has no CUDA: use device=cpu")
    return instantiate(config.model.load, device=device, dtype=DTYPES[config.dtype])
