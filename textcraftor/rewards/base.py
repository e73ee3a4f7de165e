"""The protocol of every scorer: images and prompts in, one differentiable score per picture out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from textcraftor.errors import UsageError


class Reward(nn.Module):
    """A frozen scorer. Higher is better; the gradient reaches the images and nothing else.

    Subclasses implement `score`; calling the module checks its input first.
    """

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Score images in [0, 1] against their own prompts."""
        raise NotImplementedError(f"{type(self).__name__} does not implement score(images, prompts)")

    def forward(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        if images.ndim != 4 or images.shape[1] != 3:
            raise UsageError(f"images of shape {tuple(images.shape)}: expected (batch, 3, height, width)")
        if len(prompts) != len(images):
            raise UsageError(f"{len(prompts)} prompts for {len(images)} images: give one each")
        return self.score(images, prompts)

    def freeze(self) -> Reward:
        return self.eval().requires_grad_(False)


class TextFeatures:
    """Text features by prompt: frozen, so computed once each."""

    def __init__(self, limit: int = 100_000) -> None:
        self._features: dict[str, Tensor] = {}
        self._limit = limit

    @torch.no_grad()
    def get(self, prompts: Sequence[str], encode) -> Float[Tensor, "batch features"]:
        """The features of each prompt; `encode` is called with those that are new."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._features]
        if new:
            if len(self._features) + len(new) > self._limit:
                self._features.clear()
                new = list(dict.fromkeys(prompts))
            self._features |= dict(zip(new, encode(new), strict=True))
        return torch.stack([self._features[prompt] for prompt in prompts])
