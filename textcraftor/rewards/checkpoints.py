"""Reading scorers' files: local paths that must be there, weights without code."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from textcraftor.errors import UsageError


def require(path: str, what: str) -> str:
    """Refuse a local path that is not there; a hub id passes."""
    if path.startswith((".", "/", "~")) and not Path(path).exists():
        raise UsageError(f"{what}: {path} does not exist")
    return path


def load_state(path: str | Path, what: str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors`, `.pt` or `.pth` file, on the CPU; those under `state_dict` if it has one."""
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"{what}: {path} does not exist")
    if file.suffix == ".safetensors":
        return load_file(file)
    state = torch.load(file, weights_only=True, map_location="cpu")
    return state.get("state_dict", state)
