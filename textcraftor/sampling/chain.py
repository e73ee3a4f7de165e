"""The differentiable sampling loop: classifier-free guidance and a deterministic sampler, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from textcraftor.models.base import Conditioning, DiffusionModel

ConditioningAt = Callable[[Tensor], Conditioning]


@dataclass
class Chain:
    """One pass through the sampler, whose state (multistep samplers have some) lives here: make one for each pass.

    Args:
        scheduler: with its timesteps set, the highest noise first, on the CPU.
        guidance_scale: 1 switches guidance off; see Ho & Salimans 2022, eq. 6 (their w is guidance_scale - 1).
        seeds: of each sample; whatever noise a pass draws for a sample is a function of its seed.
        height, width: of the pictures, in pixels.
        rng: draws what all samples of a batch share, as the step that a policy picks.
        detach_negative: no gradient through the unconditional branch: less memory, another objective.
        kept_steps: so many of the first steps that carry a gradient keep their activations for the backward pass, the
            others only their input, from which it computes them again; null keeps all.
        clean: latents of a real picture for each sample, for a policy that starts from those.
    """

    model: DiffusionModel
    scheduler: SchedulerMixin
    guidance_scale: float
    seeds: Sequence[int]
    height: int
    width: int
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    detach_negative: bool = False
    kept_steps: int | None = None
    clean: Tensor | None = None
    gradient_steps: int = 0  # so far in this pass
    calls: int = 0  # of the denoiser, so far in this pass
    log_prob: Tensor | None = None  # (batch,), of a pass that draws its steps: what carries the gradient then

    @property
    def timesteps(self) -> Tensor:
        return self.scheduler.timesteps

    def noise(self, copy: int = 0) -> Float[Tensor, "batch channels h w"]:
        """Unit noise for each sample; another copy is independent of the first."""
        return self.model.noise([_seed_of(seed, copy) for seed in self.seeds], self.height, self.width)

    def start(self) -> Float[Tensor, "batch channels h w"]:
        """The latents that the sampler starts from."""
        return self.noise() * self.scheduler.init_noise_sigma


def _seed_of(seed: int, copy: int) -> int:
    """Torch's CPU generator takes the lower 32 bits alone, so that seeds cannot be told apart by adding to them."""
    return int(np.random.SeedSequence((seed, copy)).generate_state(1)[0]) if copy else seed


def guided(
    chain: Chain, latents: Float[Tensor, "batch channels h w"], t: Tensor, conditioning: Conditioning
) -> Float[Tensor, "batch channels h w"]:
    """The denoiser's output with classifier-free guidance, both branches in one call where both carry a gradient."""
    model, positive = chain.model, conditioning.prompt_embeds
    if chain.guidance_scale == 1:
        return model.predict(latents, t, positive)
    if chain.detach_negative and torch.is_grad_enabled():
        with torch.no_grad():
            without = model.predict(latents, t, conditioning.negative_prompt_embeds)
        with_prompt = model.predict(latents, t, positive)
    else:
        both = torch.cat([conditioning.negative_prompt_embeds, positive])
        without, with_prompt = model.predict(torch.cat([latents, latents]), t, both).chunk(2)
    return without + chain.guidance_scale * (with_prompt - without)


def output_at(
    chain: Chain, latents: Float[Tensor, "batch channels h w"], t: Tensor, conditioning_at: ConditioningAt
) -> Float[Tensor, "batch channels h w"]:
    """The guided output, for latents as the denoiser wants them; its activations are kept, or recomputed later."""
    chain.calls += 1
    arguments = (chain, latents, t, conditioning_at(t))
    if not torch.is_grad_enabled():
        return guided(*arguments)
    chain.gradient_steps += 1
    if chain.kept_steps is None or chain.gradient_steps <= chain.kept_steps:
        return guided(*arguments)
    return checkpoint(guided, *arguments, use_reentrant=False)


def denoise(
    chain: Chain,
    latents: Float[Tensor, "batch channels h w"],
    timesteps: Tensor,
    conditioning_at: ConditioningAt,
) -> Float[Tensor, "batch channels h w"]:
    """Run the sampler over the next of the chain's timesteps; gradients flow where they are enabled."""
    for t in timesteps:
        output = output_at(chain, chain.scheduler.scale_model_input(latents, t), t, conditioning_at)
        latents = chain.scheduler.step(output, t, latents).prev_sample
    return latents


def predicted_x0(
    chain: Chain, latents: Float[Tensor, "batch channels h w"], t: Tensor, conditioning_at: ConditioningAt
) -> Float[Tensor, "batch channels h w"]:
    """The clean latents that the denoiser predicts (Song et al. 2021, eq. 9) from latents as it wants them."""
    return chain.model.to_x0(output_at(chain, latents, t, conditioning_at), t, latents)
