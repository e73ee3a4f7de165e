"""What every diffusion model offers to the chain, and what conditions its denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """What the text says to the denoiser, for both branches of classifier-free guidance.

    Args:
        prompt_embeds: the conditional branch.
        negative_prompt_embeds: the unconditional branch: the negative prompt, or the empty one.
    """

    prompt_embeds: Float[Tensor, "batch tokens width"]
    negative_prompt_embeds: Float[Tensor, "batch tokens width"]

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same conditioning with every tensor changed."""
        return Conditioning(**{field.name: change(getattr(self, field.name)) for field in fields(self)})

    @staticmethod
    def mix(parts: Mapping[str, Conditioning], weights: Mapping[str, float]) -> Conditioning:
        """The weighted sum of several encoders' embeddings, both branches alike (TextCraftor, section 3.4)."""
        return Conditioning(
            **{
                field.name: sum(weights[name] * getattr(parts[name], field.name) for name in weights)
                for field in fields(Conditioning)
            }
        )


@runtime_checkable
class DiffusionModel(Protocol):
    """A text-to-image model as the chain sees it. Latents are scaled as the denoiser wants them."""

    @property
    def device(self) -> torch.device: ...

    def encode(self, prompts: Sequence[str], negative_prompts: Sequence[str], encoder: str) -> Conditioning:
        """Embed prompts with the text encoder of that name (`original`, or a tuned one's)."""

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Float[Tensor, "batch channels h w"]:
        """Unit noise, each from a generator of its own seed: it does not depend on the batch."""

    def scheduler(self, name: str, steps: int) -> SchedulerMixin:
        """A fresh deterministic sampler of that name with its timesteps set, highest noise first, on the CPU."""

    def predict(
        self,
        latents: Float[Tensor, "batch channels h w"],
        t: Tensor,
        prompt_embeds: Float[Tensor, "batch tokens width"],
    ) -> Float[Tensor, "batch channels h w"]:
        """The denoiser's raw output (epsilon or v) at one timestep."""

    def to_x0(
        self,
        output: Float[Tensor, "batch channels h w"],
        t: Tensor,
        latents: Float[Tensor, "batch channels h w"],
    ) -> Float[Tensor, "batch channels h w"]:
        """The clean latents that an output of `predict` at these latents stands for."""

    def add_noise(
        self, latents: Float[Tensor, "batch channels h w"], noise: Float[Tensor, "batch channels h w"], t: Tensor
    ) -> Float[Tensor, "batch channels h w"]:
        """Clean latents at the noise level of a timestep, as `predict` wants them."""

    def checkpoint_blocks(self, unet: bool, decoder: bool) -> None:
        """Whether the backward pass computes activations again block by block, and the decoder's picture by picture."""

    def decode(self, latents: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 3 height width"]:
        """Images in [0, 1]."""
