"""The model that a configuration names, on the device and in the precision that it names."""

from __future__ import annotations

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from textcraftor.errors import UsageError
from textcraftor.models.stable_diffusion import StableDiffusion
from textcraftor.models.tuning import cast_frozen

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(config: DictConfig) -> StableDiffusion:
    """Build `config.model` on `config.device`, in float32: what learns starts from that."""
    device = device_of(config.device)
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    return instantiate(config.model.load, device=device)


def freeze(model: StableDiffusion, dtype: torch.dtype) -> None:
    """Store whatever was never tuned and does not learn in this dtype: what tuning changed, rounding would lose.

    The VAE stays in float32 beside float16: activations of Stable Diffusion's own leave its range.
    """
    model.compute_dtype = dtype
    cast_frozen([model.text_encoders["original"]] + ([] if model.tuned_unet else [model.unet]), dtype)
    cast_frozen([model.vae], torch.float32 if dtype == torch.float16 else dtype)


def device_of(device: str) -> str:
    """The device that a configuration means; `auto` takes a GPU where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device={device}, but this machine or this build of torch has no CUDA: use device=cpu")
    try:
        return str(torch.device(device))
    except RuntimeError as error:
        raise UsageError(f"device={device} must be auto, cpu, cuda or a numbered one, as cuda:1") from error


def dtype_of(config: DictConfig, key: str) -> tuple[torch.dtype, str]:
    """The dtype that a configuration names under `key`, and why it is that one."""
    name = config[key]
    if name in DTYPES:
        return DTYPES[name], f"{key}={name}"
    if name != "auto":
        raise UsageError(f"{key}={name} must be auto or one of {', '.join(DTYPES)}")
    if not device_of(config.device).startswith("cuda"):
        return torch.float32, "CPUs gain no time from less"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "this GPU computes in it"
    return torch.float16, "this GPU has no bfloat16; the VAE stays in float32"
