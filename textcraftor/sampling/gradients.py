"""Gradient policies: where in the chain the reward's gradient flows. All share one signature."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from textcraftor.errors import UsageError
from textcraftor.sampling.chain import Chain, ConditioningAt, denoise


@runtime_checkable
class Rollout(Protocol):
    """From initial noise to final latents, with gradients where the policy lets them flow."""

    def __call__(
        self, chain: Chain, latents: Float[Tensor, "batch channels h w"], conditioning_at: ConditioningAt
    ) -> Float[Tensor, "batch channels h w"]: ...


def last_k(
    chain: Chain, latents: Float[Tensor, "batch channels h w"], conditioning_at: ConditioningAt, *, k: int
) -> Float[Tensor, "batch channels h w"]:
    """Through the last k steps (DRaFT-K, Clark et al. 2023, section 4.2; TextCraftor uses k=5 of 25)."""
    if not 1 <= k <= len(chain.timesteps):
        raise UsageError(f"gradient.k={k} must lie between 1 and sampling.steps={len(chain.timesteps)}")
    with torch.no_grad():
        latents = denoise(chain, latents, chain.timesteps[:-k], conditioning_at)
    return denoise(chain, latents, chain.timesteps[-k:], conditioning_at)


def full(
    chain: Chain, latents: Float[Tensor, "batch channels h w"], conditioning_at: ConditioningAt
) -> Float[Tensor, "batch channels h w"]:
    """Through the whole chain (DRaFT, Clark et al. 2023, section 4.1)."""
    return denoise(chain, latents, chain.timesteps, conditioning_at)
