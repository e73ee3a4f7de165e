"""The protocol of every scorer: images and prompts in, one differentiable score per picture out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from textcraftor.errors import UsageError

RANGE_TOLERANCE = 1e-3  # what rounding in half precision may add to [0, 1]


class Reward(nn.Module):
    """A frozen scorer. Higher is better; the gradient reaches the images and nothing else.

    Subclasses implement `score`; calling the module checks its input first.
    """

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Score images in [0, 1] against their own prompts."""
        raise NotImplementedError(f"{type(self).__name__} does not implement score(images, prompts)")

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that this scorer cannot judge, before any training step."""

    def applies(self, prompts: Sequence[str]) -> list[bool]:
        """Whether each prompt asks for anything that this scorer judges; where it does not, the score is 0."""
        return [True] * len(prompts)

    def measure(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Figures by name that have no gradient but that people report; NaN where one does not apply."""
        return {}

    def forward(self, images: Tensor, prompts: Sequence) -> Float[Tensor, " batch"]:
        check_images(images)
        check_prompts(prompts, len(images))
        half = images.dtype in (torch.float16, torch.bfloat16)
        return self.score(images.float() if half else images, prompts)

    def freeze(self) -> Reward:
        return self.eval().requires_grad_(False)


def check_images(images: Tensor) -> None:
    """Refuse what is no batch of pictures.

    The range is not read of pictures that come out of a chain: it clamps them, the training loop names a NaN
    itself, and reading it would halt the device at every step. On the device `meta` there is none.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"images of shape {shape}: expected a tensor (batch, 3, height, width)")
    if not images.is_floating_point():
        raise UsageError(f"images of dtype {images.dtype}: expected floats in [0, 1]; divide 8-bit pictures by 255")
    if (images.requires_grad and not images.is_leaf) or images.is_meta:
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if low != low:
        raise UsageError("images hold NaN: expected values in [0, 1]")
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise UsageError(
            f"images in [{low:.3g}, {high:.3g}]: expected [0, 1]; rescale pictures in [-1, 1] by x / 2 + 0.5"
        )


def check_prompts(prompts: Sequence, count: int) -> None:
    """Refuse prompts that are no strings, empty, or not one for each picture."""
    if isinstance(prompts, str) or len(prompts) != count:
        given = 1 if isinstance(prompts, str) else len(prompts)
        raise UsageError(f"{given} prompts for {count} images: give a list with one each")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise UsageError(f"prompt {index} is {prompt!r}, a {type(prompt).__name__}: expected a string")
        if not prompt.strip():
            raise UsageError(f"prompt {index} is empty: a scorer needs to know what was asked for")


class FunctionReward(Reward):
    """A plain function `function(images, prompts) -> scores` as a scorer."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        scores = self.function(images, prompts)
        if not isinstance(scores, Tensor) or scores.shape != (len(images),):
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise UsageError(f"{self.function}: returned {shape} for {len(images)} images; expected ({len(images)},)")
        return scores


def as_reward(scorer: nn.Module | Callable) -> nn.Module:
    """A module as it is, a function as a scorer."""
    return scorer if isinstance(scorer, nn.Module) else FunctionReward(scorer)


def applies_to(scorer: nn.Module, prompts: Sequence[str]) -> list[bool]:
    """Which prompts a scorer judges: a module that is no `Reward` judges all."""
    return scorer.applies(prompts) if isinstance(scorer, Reward) else [True] * len(prompts)
