"""Regions: prompts of their own for parts of a picture, as masks over what the denoiser predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from textcraftor.config.rules import is_number, shown
from textcraftor.errors import UsageError
from textcraftor.models.base import Conditioning, Regional, Size
from textcraftor.models.model import ORIGINAL, Model

Box = tuple[float, float, float, float]

SIDES = "four numbers in [0, 1]: left, top, right, bottom"
EDGE = 0.01  # sigma of a mask's soft edges, as a share of the picture's sides (DiffSynth-Studio: 10 of 1024 pixels)
PARTS = 8  # by so many points along each side of a latent a mask is averaged


@dataclass(frozen=True)
class Region:
    """A part of a picture with a prompt of its own.

    Args:
        box: left, top, right and bottom in [0, 1], from the picture's upper left corner.
        strength: how much its prompt counts beside the picture's own, which counts 1.

    Raises:
        UsageError: the box is none, the prompt is empty, the strength is negative or not finite.
    """

    box: Box
    prompt: str
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not all(0 <= side <= 1 for side in self.box):
            raise UsageError(f"box={shown(self.box)} must be {SIDES}")
        left, top, right, bottom = self.box
        if not (left < right and top < bottom):
            raise UsageError(f"box={shown(self.box)} is empty: left must be less than right, top less than bottom")
        if not self.prompt.strip():
            raise UsageError(f"the prompt of box={shown(self.box)} is empty: say what it shall show")
        if not 0 <= self.strength < math.inf:
            raise UsageError(f"strength={shown(self.strength)} of box={shown(self.box)} must be finite, 0 or more")

    @classmethod
    def of(cls, given: Any) -> Region:
        """From a mapping of box, prompt and, if it is not 1, strength, as in a configuration or a JSON file."""
        if not isinstance(given, Mapping) or not {"box", "prompt"} <= {*given} <= {"box", "prompt", "strength"}:
            raise UsageError(f"a region must be {{box: [0, 0, 1, 1], prompt: '...', strength: 1}}, not {shown(given)}")
        box, prompt, strength = given["box"], given["prompt"], given.get("strength", 1.0)
        if not isinstance(box, list | tuple) or len(box) != 4 or not all(is_number(side) for side in box):
            raise UsageError(f"box={shown(box)} must be {SIDES}")
        if not isinstance(prompt, str):
            raise UsageError(f"prompt={shown(prompt)} of box={shown(box)} must be a text")
        if not is_number(strength):
            raise UsageError(f"strength={shown(strength)} of box={shown(box)} must be finite, 0 or more")
        left, top, right, bottom = map(float, box)
        return cls((left, top, right, bottom), prompt, float(strength))

    def mask(self, height: int, width: int) -> Float[Tensor, "h w"]:
        """How far each latent lies in the box, in [0, 1]; edges within the picture are soft."""
        left, top, right, bottom = self.box
        return _within(top, bottom, height)[:, None] * _within(left, right, width)[None, :]


def _within(low: float, high: float, count: int) -> Float[Tensor, " count"]:
    """The share of each of `count` equal parts of [0, 1] that lies between two bounds, blurred; those of [0, 1] itself
    are no edges."""
    points = ((torch.arange(count * PARTS) + 0.5) / (count * PARTS)).double()
    above = torch.ones_like(points) if low == 0 else torch.special.ndtr((points - low) / EDGE)
    below = torch.ones_like(points) if high == 1 else torch.special.ndtr((high - points) / EDGE)
    return (above + below - 1).clamp(0, 1).view(count, PARTS).mean(1).float()


def with_regions(
    model: Model,
    conditioning: Conditioning,
    regions: Sequence[Sequence[Region]],
    encoder: str = ORIGINAL,
    size: Size = (0, 0),
) -> Conditioning:
    """What the text says to the denoiser, with each sample's regions, read by the encoders of that name.

    Args:
        regions: of each sample, none or several.
        size: of the pictures, height and width in pixels.
    """
    each = [(sample, region) for sample, of_sample in enumerate(regions) for region in of_sample]
    if not each:
        return conditioning
    branch = model.encode([region.prompt for _, region in each], None, encoder, size).prompt
    height, width = model.family.latent_shape(model.pipeline, size)[1:]
    weights = torch.stack([region.strength * region.mask(height, width) for _, region in each])[:, None]
    owners = torch.tensor([sample for sample, _ in each], device=model.device)
    return replace(conditioning, regional=Regional(branch, owners, weights.to(model.device)))
