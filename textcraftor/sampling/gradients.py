"""Gradient policies: where in the chain the reward's gradient flows. All share one signature."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from textcraftor.errors import UsageError
from textcraftor.sampling.chain import Chain, ConditioningAt, denoise, output_at, predicted_x0
from textcraftor.sampling.needs import after_first, any_of, check_k, check_span, needs, steps_between


@runtime_checkable
class Rollout(Protocol):
    """From initial noise to final latents, with gradients where the policy lets them flow.

    Some policies return several latents for each prompt: all prompts in order, then all again.
    """

    def __call__(
        self, chain: Chain, latents: Float[Tensor, "batch channels h w"], conditioning_at: ConditioningAt
    ) -> Float[Tensor, "results channels h w"]: ...


@needs(check=check_k)
def last_k(
    chain: Chain, latents: Float[Tensor, "batch channels h w"], conditioning_at: ConditioningAt, *, k: int
) -> Float[Tensor, "batch channels h w"]:
    """Through the last k calls of the denoiser (DRaFT-K, Clark et al. 2023, section 4.2; TextCraftor: 5 of 25)."""
    check_k(len(chain.timesteps), k)
    with torch.no_grad():
        latents = denoise(chain, latents, chain.timesteps[:-k], conditioning_at)
    return denoise(chain, latents, chain.timesteps[-k:], conditioning_at)


def full(
    chain: Chain, latents: Float[Tensor, "batch channels h w"], conditioning_at: ConditioningAt
) -> Float[Tensor, "batch channels h w"]:
    """Through the whole chain (DRaFT, Clark et al. 2023, section 4.1)."""
    return denoise(chain, latents, chain.timesteps, conditioning_at)


def random_k(
    chain: Chain,
    latents: Float[Tensor, "batch channels h w"],
    conditioning_at: ConditioningAt,
    *,
    mean: float,
    sd: float,
) -> Float[Tensor, "batch channels h w"]:
    """Through the steps from a random one to the end, one draw a batch (AlignProp, Prabhudesai et al. 2023, section 4).

    Args:
        mean, sd: of the normal draw of the first step with a gradient, as shares of the chain; the paper's 42 and 5 of
            50 steps are .84 and .1.
    """
    steps = len(chain.timesteps)
    first = round(steps * chain.rng.normal(mean, sd))
    return last_k(chain, latents, conditioning_at, k=min(max(steps - first, 1), steps))


def low_variance(
    chain: Chain, latents: Float[Tensor, "batch channels h w"], conditioning_at: ConditioningAt, *, n: int
) -> Float[Tensor, "results channels h w"]:
    """Through the last step, and again from n fresh noisings of its result (DRaFT-LV, Clark et al. 2023, section 4.3).

    Returns:
        (batch * (n + 1), ...): the mean over them has less variance than the chain's own result.
    """
    results = [last_k(chain, latents, conditioning_at, k=1)]
    t, clean = chain.timesteps[-1], results[0].detach()
    for copy in range(n):
        noisy = chain.model.noise_schedule.add_noise(clean, chain.noise(copy + 1).to(clean), t)
        results.append(predicted_x0(chain, noisy, t, conditioning_at))
    return torch.cat(results)


@needs(check=check_span, reach=after_first)
def refl(
    chain: Chain,
    latents: Float[Tensor, "batch channels h w"],
    conditioning_at: ConditioningAt,
    *,
    first: float,
    last: float,
    jumps: int = 1,
) -> Float[Tensor, "results channels h w"]:
    """To a random late step, then in one jump to the x0 that it predicts (ReFL, Xu et al. 2023, algorithm 1).

    Args:
        first, last: the steps to draw from, as shares of the chain; the paper's 30 to 39 of 40 are .75 and .975.
        jumps: from so many steps of one chain, each drawn from its own part of them; the paper's is one.

    Returns:
        (batch * jumps, ...): a chain costs most of a step, and further jumps from it cost three passes each at most.
    """
    results, at, span = [], 0, steps_between(len(chain.timesteps), first, last)
    for low, high in pairwise(span.start + len(span) * part // jumps for part in range(jumps + 1)):
        index = int(chain.rng.integers(low, high))
        t = chain.timesteps[index]
        with torch.no_grad():
            latents = denoise(chain, latents, chain.timesteps[at:index], conditioning_at)
        noisy, at = chain.sampler.scaled(latents, t), index + 1
        output = output_at(chain, noisy, t, conditioning_at)
        results.append(chain.model.noise_schedule.to_x0(output, t, noisy))
        latents = chain.sampler.step(output.detach(), t, latents)
    return torch.cat(results)


@needs(pictures=True, check=check_span, reach=after_first)
def direct(
    chain: Chain,
    latents: Float[Tensor, "batch channels h w"],
    conditioning_at: ConditioningAt,
    *,
    first: float = 0.0,
    last: float = 1.0,
) -> Float[Tensor, "batch channels h w"]:
    """From a real picture, noised to a random step, in one jump to the x0 that is predicted (TextCraftor, section 3.1:
    its first variant, which it finds to fail: rewards judge such blurred pictures badly).

    Args:
        first, last: the steps to draw from, as shares of the chain.
    """
    if chain.clean is None:
        raise UsageError("gradient=direct starts from real pictures: give data.path=")
    span = steps_between(len(chain.timesteps), first, last)
    index = int(chain.rng.integers(span.start, span.stop))
    noisy = chain.model.noise_schedule.add_noise(
        chain.clean.to(latents), chain.noise(1).to(latents), chain.timesteps[index]
    )
    return predicted_x0(chain, noisy, chain.timesteps[index], conditioning_at)


@needs(draws=True, check=check_k, reach=any_of)
def ddpo(
    chain: Chain, latents: Float[Tensor, "batch channels h w"], conditioning_at: ConditioningAt, *, k: int | None = None
) -> Float[Tensor, "batch channels h w"]:
    """None through the pictures: the score-function estimator over a chain that draws its steps (DDPO_SF, Black et al.
    2023, eq. 3), for rewards that cannot be differentiated. `chain.log_prob` carries the gradient.

    Each step is a normal distribution (`Sampler.transition`: DDIM's with eta = 1, for flows that of Flow-GRPO); as in
    DDPO's own code its log-density is averaged over the latents' elements.

    Args:
        k: so many steps, drawn anew for each batch, carry a gradient; null means all.
    """
    steps = len(chain.timesteps)
    check_k(steps, k := k or steps)
    learning, log_prob = chain.rng.choice(steps, k, replace=False), torch.zeros(len(latents), device=latents.device)
    for index, t in enumerate(chain.timesteps):
        with torch.set_grad_enabled(torch.is_grad_enabled() and index in learning):
            output = output_at(chain, latents, t, conditioning_at)
            mean, sd = chain.sampler.transition(output, t, latents)
        latents = mean.detach() + sd * chain.noise(index + 1)
        if index in learning and sd.amax() > 0:  # the last step of some noise schedules draws nothing
            log_prob = log_prob - ((latents - mean) / sd).square().mean((1, 2, 3)) / 2
    chain.log_prob = log_prob
    return latents
