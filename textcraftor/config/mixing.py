"""Tuned runs, mixed for inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textcraftor.config.fields import number, typed_path
from textcraftor.config.rules import Group, is_number


@dataclass
class Denoiser(Group):
    """`denoiser`: which denoiser stands beside the mix of text encoders."""

    path: str | None = typed_path()
    """A folder with a tuned denoiser or LoRA, or a LoRA's file; null: that of the runs; original: the model's own."""
    strength: float = number()
    """Of its LoRA."""


def is_weight(value: Any) -> bool:
    """Whether this can be the weight of an encoder."""
    return value == "rest" or is_number(value)


def is_list_of_weights(value: Any) -> bool:
    """Whether these are weights for the cells of a grid."""
    return isinstance(value, list) and bool(value) and all(map(is_number, value))
