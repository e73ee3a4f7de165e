"""The differentiable sampling loop: classifier-free guidance and a deterministic sampler, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from textcraftor.models.base import Conditioning, DiffusionModel

ConditioningAt = Callable[[Tensor], Conditioning]


@dataclass(frozen=True)
class Chain:
    """A model with the settings of its sampler.

    Args:
        timesteps: highest noise first, on the CPU.
        guidance_scale: 1 switches guidance off; see Ho & Salimans 2022, eq. 6 (their w is guidance_scale - 1).
        recompute: keep only each step's input and recompute its activations in the backward pass.
    """

    model: DiffusionModel
    timesteps: Tensor
    guidance_scale: float
    recompute: bool = False


def guided(
    chain: Chain, latents: Float[Tensor, "batch channels h w"], t: Tensor, conditioning: Conditioning
) -> Float[Tensor, "batch channels h w"]:
    """The denoiser's output with classifier-free guidance, both branches in one call."""
    if chain.guidance_scale == 1:
        return chain.model.predict(latents, t, conditioning.prompt_embeds)
    both = torch.cat([conditioning.negative_prompt_embeds, conditioning.prompt_embeds])
    negative, positive = chain.model.predict(torch.cat([latents, latents]), t, both).chunk(2)
    return negative + chain.guidance_scale * (positive - negative)


def denoise(
    chain: Chain,
    latents: Float[Tensor, "batch channels h w"],
    timesteps: Tensor,
    conditioning_at: ConditioningAt,
) -> Float[Tensor, "batch channels h w"]:
    """Run the sampler over some of the chain's timesteps; gradients flow where they are enabled."""
    for t in timesteps:
        arguments = (chain, latents, t, conditioning_at(t))
        if chain.recompute and torch.is_grad_enabled():
            output = checkpoint(guided, *arguments, use_reentrant=False)
        else:
            output = guided(*arguments)
        latents = chain.model.step(output, t, latents)
    return latents
