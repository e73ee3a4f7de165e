"""The model that a configuration names, on the device that it names."""

from __future__ import annotations

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from textcraftor.errors import UsageError
from textcraftor.models.stable_diffusion import StableDiffusion

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(config: DictConfig) -> StableDiffusion:
    """Build `config.model` on `config.device` in `config.dtype`."""
    return instantiate(config.model.load, device=device_of(config.device), dtype=dtype_of(config, "dtype"))


def device_of(device: str) -> str:
    """The device that a configuration means; `auto` takes a GPU where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device={device}, but this machine or this build of torch has no CUDA: use device=cpu")
    return device


def dtype_of(config: DictConfig, key: str) -> torch.dtype:
    """The dtype that a configuration names under `key`."""
    if config[key] not in DTYPES:
        raise UsageError(f"{key}={config[key]} must be one of {', '.join(DTYPES)}")
    return DTYPES[config[key]]
