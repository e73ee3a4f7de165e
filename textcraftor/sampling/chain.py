"""The differentiable sampling loop: classifier-free guidance and a sampler, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from textcraftor.models.base import Branch, Conditioning
from textcraftor.models.model import Model
from textcraftor.models.sampler import Sampler
from textcraftor.models.seeds import seed_of_32_bits

ConditioningAt = Callable[[Tensor], Conditioning]


@dataclass
class Chain:
    """One pass through the sampler, whose state (multistep samplers have some) lives here: make one for each pass.

    Args:
        guidance_scale: 1 switches guidance off; see Ho & Salimans 2022, eq. 6 (their w is guidance_scale - 1). Models
            that are distilled from guidance embed it instead.
        seeds: of each sample; whatever noise a pass draws for a sample is a function of its seed.
        height, width: of the pictures, in pixels.
        rng: draws what all samples of a batch share, as the step that a policy picks.
        detach_negative: no gradient through the unconditional branch: less memory, another objective.
        kept_steps: so many of the first steps that carry a gradient keep their activations for the backward pass, the
            others only their input, from which it computes them again; null keeps all.
        clean: latents of a real picture for each sample, for a policy that starts from those.
    """

    model: Model
    sampler: Sampler
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
    weight: Tensor | None = None  # (batch,), of a policy that trusts some samples less: what their loss counts
    deferred: bool = False  # whether each step with a gradient is computed in the backward pass, one at a time

    @property
    def timesteps(self) -> Tensor:
        return self.sampler.timesteps

    def noise(self, copy: int = 0) -> Float[Tensor, "batch channels h w"]:
        """Unit noise for each sample; another copy is independent of the first."""
        return self.model.noise([_seed_of(seed, copy) for seed in self.seeds], self.height, self.width)

    def start(self) -> Float[Tensor, "batch channels h w"]:
        """The latents that the sampler starts from."""
        return self.sampler.start(self.noise())


def _seed_of(seed: int, copy: int) -> int:
    """Neighbouring seeds stay independent: what one adds up to is not what another begins with."""
    return seed_of_32_bits(seed, copy) if copy else seed


def guided(
    chain: Chain, latents: Float[Tensor, "batch channels h w"], t: Tensor, conditioning: Conditioning
) -> Float[Tensor, "batch channels h w"]:
    """The denoiser's output with classifier-free guidance and regions, all branches in one call where all carry a
    gradient."""
    predict, scale = chain.model.predict, chain.guidance_scale
    prompt, negative, regional = conditioning.prompt, conditioning.negative, conditioning.regional
    inputs, outputs = dict[str, tuple[Tensor, Branch]](), dict[str, Tensor]()
    if negative is not None and chain.detach_negative and torch.is_grad_enabled():
        with torch.no_grad():
            outputs["negative"] = predict(latents, t, negative, scale)
    elif negative is not None:
        inputs["negative"] = latents, negative
    inputs["prompt"] = latents, prompt
    if regional is not None:
        inputs["regions"] = latents[regional.owners], regional.branch
    rows, branches = zip(*inputs.values(), strict=True)
    output = predict(torch.cat(rows), t, Branch.cat(branches), scale)
    outputs |= zip(inputs, output.split([len(one) for one in rows]), strict=True)
    with_prompt = outputs["prompt"] if regional is None else regional.blend(outputs["prompt"], outputs["regions"])
    return with_prompt if negative is None else outputs["negative"] + scale * (with_prompt - outputs["negative"])


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
    return checkpoint(guided, *arguments, use_reentrant=False, preserve_rng_state=False)


def denoise(
    chain: Chain,
    latents: Float[Tensor, "batch channels h w"],
    timesteps: Tensor,
    conditioning_at: ConditioningAt,
) -> Float[Tensor, "batch channels h w"]:
    """Run the sampler over the next of the chain's timesteps; gradients flow where they are enabled."""
    for t in timesteps:
        output = output_at(chain, chain.sampler.scaled(latents, t), t, conditioning_at)
        latents = chain.sampler.step(output, t, latents)
    return latents


def predicted_x0(
    chain: Chain, latents: Float[Tensor, "batch channels h w"], t: Tensor, conditioning_at: ConditioningAt
) -> Float[Tensor, "batch channels h w"]:
    """The clean latents that the denoiser predicts (Song et al. 2021, eq. 9) from latents as it wants them."""
    return chain.model.noise_schedule.to_x0(output_at(chain, latents, t, conditioning_at), t, latents)
