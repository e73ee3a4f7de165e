"""The model that a configuration names, each part on the device and in the precision that it is needed in."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from omegaconf import DictConfig

from textcraftor.assets import loading
from textcraftor.config.making import made
from textcraftor.config.objects import given
from textcraftor.errors import UsageError
from textcraftor.models.model import ORIGINAL, Model, family_of
from textcraftor.models.single_file import load_single_file
from textcraftor.models.tuning import cast_frozen, has_adapters

INDEX = DiffusionPipeline.config_name
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(config: DictConfig, dtypes: Mapping[str, torch.dtype] | None = None) -> Model:
    """Build `config.model` on `config.device`.

    Args:
        dtypes: by part: `denoiser` whatever diffusers calls it, `default` for the others; else float32.
    """
    device = device_of(config.device)
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    return Model(made(config.model.load, device=device, dtypes=dtypes))


def load_pipeline(
    path: str, device: str = "cpu", dtypes: Mapping[str, torch.dtype] | None = None, config: str | None = None
) -> DiffusionPipeline:
    """A frozen pipeline from a diffusers folder, a single-file `.safetensors` checkpoint or a hub id.

    Args:
        dtypes: each part is read in its own at once, which spares the memory of a larger one.
        config: of a single file, a folder or hub id in diffusers' layout for what it does not hold; null for what is
            published of Stable Diffusion and SDXL, and the hub's for others.

    Raises:
        UsageError: a local path that is not there, a folder that is no pipeline, or one of no family that is known.
    """
    local = local_path(path)
    if local.is_dir() and not (local / INDEX).exists():
        raise UsageError(f"model.path={path} has no model_index.json: it is not a diffusers pipeline folder")
    source = str(local) if local.exists() else path
    dtype: Any = {"default": torch.float32, **(dtypes or {})}
    with loading(path, "model.path", "a diffusion pipeline"):
        if local.is_file():
            pipeline = load_single_file(local, dtype["default"], config)
        else:
            index = local / INDEX if local.is_dir() else Path(hf_hub_download(path, INDEX))
            family = family_of(json.loads(index.read_text())["_class_name"])
            dtype = {family.denoiser if part == "denoiser" else part: kind for part, kind in dtype.items()}
            pipeline = DiffusionPipeline.from_pretrained(source, dtype=dtype, **family.load_options)
    return frozen(pipeline.to(device))


def check_given(pipeline: DiffusionPipeline) -> None:
    """Refuse a pipeline of a Python program of which a run could not say what it tuned, or that is elsewhere.

    Raises:
        UsageError: it has adapters loaded, accelerate moves its parts, or no family is known for it.
    """
    family_of(*(kind.__name__ for kind in type(pipeline).__mro__))
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module) and has_adapters(part):
            raise UsageError(
                f"model: the pipeline's {name} has adapters loaded, of which the run would not know: take them off by "
                "unload_lora_weights(), or fuse them, save the pipeline and give its folder"
            )
        if hasattr(part, "_hf_hook"):
            raise UsageError(
                f"model: accelerate moves the pipeline's {name}: load it without enable_model_cpu_offload(), device_map"
            )


def given_pipeline(what: str, device: str = "cpu", dtypes: Mapping[str, torch.dtype] | None = None) -> Any:
    """The pipeline that a Python program gave, frozen; the program's own stays as it is.

    Weights are shared until a precision or a device asks for others; a part that `dtypes` names may be written to, and
    gets its own.

    Args:
        what: the pipeline was, for people.
        dtypes: as `load_pipeline` takes them.
    """
    theirs, dtype = given("model", what), {"default": torch.float32, **(dtypes or {})}
    family = family_of(*(kind.__name__ for kind in type(theirs).__mro__))
    parts = dict[str, Any]()
    for name, part in theirs.components.items():
        if isinstance(part, torch.nn.Module):
            named = "denoiser" if name == family.denoiser else name
            part = own_parameters(part, written=named in dtype)
            cast_frozen([part], dtype.get(named, dtype["default"]))
        parts[name] = part
    pipeline = copy.copy(theirs)
    vars(pipeline).update(parts)
    return frozen(pipeline.to(device))


def own_parameters(module: torch.nn.Module, written: bool) -> torch.nn.Module:
    """A copy of a module with parameters of its own, which share the original's numbers unless they will be written."""
    known: dict[int, Any] = {
        id(one): torch.nn.Parameter(one.detach().clone() if written else one.detach(), requires_grad=False)
        for one in module.parameters()
    }
    return copy.deepcopy(module, known)


def local_path(path: str) -> Path:
    """Where a model lies, if it lies on this disk; refused if its path can be no hub id and nothing is there."""
    local = Path(path).expanduser()
    looks_local = path.startswith((".", "/", "~")) or local.suffix in (".safetensors", ".ckpt")
    if looks_local and not local.exists():
        raise UsageError(f"model.path={path} does not exist: give a diffusers folder, a .safetensors file or a hub id")
    return local


def frozen(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """The pipeline, none of whose parts learns."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipeline


def freeze(model: Model, dtype: torch.dtype) -> None:
    """Store whatever was never tuned and does not learn in this dtype: what tuning changed, rounding would lose.

    The VAE stays in float32 beside float16: activations of Stable Diffusion's and SDXL's own leave its range.
    """
    model.compute_dtype = dtype
    cast_frozen([*model.encoders(ORIGINAL).values()], dtype)
    cast_frozen([] if model.tuned_denoiser else [model.denoiser], dtype)
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
