"""Reading scorers' files: weights without code, complete, or refused with the first key that is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from textcraftor.assets import folder_or_id, loading, local_file
from textcraftor.errors import UsageError
from textcraftor.files.reading import read_json


def load_state(path: str, what: str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors`, `.pt` or `.pth` file, on the CPU; those under `state_dict` if it has one.

    Args:
        path: a local file, `hf://owner/repo/file` or an address.

    Raises:
        UsageError: no such file, a damaged one, or a pickle that holds more than tensors.
    """
    file = local_file(path, what)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, weights_only=True, map_location="cpu", mmap=_is_zip(file))
    except UnpicklingError as error:
        raise UsageError(
            f"{what}: {path} is a pickle that holds more than tensors, and loading it could run any code; open it "
            "where you trust it and save its state dict as .safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{what}: {path} is damaged or no checkpoint ({reason}); fetch it again") from error
    state = state.get("state_dict", state)
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{what}: {path} is no state dict; expected names and tensors, or those under 'state_dict'")
    return state


def _is_zip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == b"PK"


def require_keys(state: Mapping[str, Tensor], keys: Iterable[str], source: str, layout: str) -> None:
    """Name the first key that a checkpoint lacks."""
    for key in keys:
        if key not in state:
            raise UsageError(f"{source}: key {key!r} is missing; expected {layout}")


def build(
    make: Callable[[], nn.Module],
    state: Mapping[str, Tensor],
    source: str,
    layout: str,
    dtype: torch.dtype | None = torch.float32,
) -> nn.Module:
    """A module with these weights, made without drawing random ones first.

    Args:
        make: builds the module.
        state: by the module's own key names; more than it needs is allowed.
        dtype: of the weights; None: as they are stored.

    Raises:
        UsageError: naming the first key that is missing or has another shape.
    """
    with init_empty_weights(include_buffers=False):
        module = make()
    wanted = module.state_dict()
    require_keys(state, wanted, source, layout)
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            shapes = f"{tuple(state[key].shape)}, expected {tuple(value.shape)}"
            raise UsageError(f"{source}: {key!r} has shape {shapes}, as in {layout}")
    module.load_state_dict(
        {key: state[key].to(dtype) if dtype and state[key].is_floating_point() else state[key] for key in wanted},
        assign=True,
    )
    return module


def read_settings(path: str, name: str, what: str) -> dict[str, Any]:
    """A JSON file of a local folder or of a hub repository.

    Raises:
        UsageError: it is not there, or is no JSON object.
    """
    folder = Path(path).expanduser()
    return read_json(local_file(str(folder / name) if folder.is_dir() else f"hf://{path}/{name}", what))


def model_type(path: str, what: str) -> str | None:
    """What the `config.json` of a transformers folder or hub id says of which model it is.

    Raises:
        UsageError: no such folder, or no settings in it.
    """
    with loading(path, what, "a model as transformers saves it"):
        return PreTrainedConfig.get_config_dict(folder_or_id(path, what))[0].get("model_type")


def load_pretrained(
    kind: type[PreTrainedModel], path: str, what: str, unused: str = "", dtype: torch.dtype | str = torch.float32
) -> PreTrainedModel:
    """A transformers model from a folder or hub id, complete.

    Args:
        unused: part of the names of tensors that the checkpoint may lack.
        dtype: of the weights; "auto": as they are stored.

    Raises:
        UsageError: no such folder, a damaged file, or a tensor that is missing or has another shape.
    """
    layout = f"{kind.__name__} as transformers saves it"
    with loading(path, what, layout):
        model, info = kind.from_pretrained(
            folder_or_id(path, what), dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    missing = sorted(key for key in info["missing_keys"] if not unused or unused not in key)
    if missing:
        raise UsageError(f"{what} {path}: key {missing[0]!r} is missing; expected {layout}")
    if info["mismatched_keys"]:
        key = sorted(str(entry) for entry in info["mismatched_keys"])[0]
        raise UsageError(f"{what} {path}: {key} has another shape than its config says; expected {layout}")
    return model
