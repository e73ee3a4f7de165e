"""A scheduler of diffusers as the chain uses it: one step, or the normal distribution of one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from jaxtyping import Float
from torch import Tensor

from textcraftor.errors import UsageError

DRAWN = 0.7  # the amount of noise in Flow-GRPO's steps, a in its equation 12


@dataclass(frozen=True)
class Sampler:
    """Deterministic steps; multistep schedulers keep their state here, so make one for each pass.

    Args:
        scheduler: with its timesteps set, the highest noise first, on the CPU.
    """

    scheduler: SchedulerMixin

    @property
    def timesteps(self) -> Float[Tensor, " steps"] | Tensor:
        return self.scheduler.timesteps

    def start(self, noise: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """Unit noise as the latents that the sampler starts from."""
        return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def noised(
        self, clean: Float[Tensor, "batch channels h w"], noise: Float[Tensor, "batch channels h w"], t: Tensor
    ) -> Float[Tensor, "batch channels h w"]:
        """Clean latents at the noise level of one of the timesteps, as `step` takes them."""
        add = getattr(self.scheduler, "scale_noise", None)  # of flows
        return self.scheduler.add_noise(clean, noise, t[None]) if add is None else add(clean, t[None], noise)

    def scaled(self, latents: Float[Tensor, "batch channels h w"], t: Tensor) -> Float[Tensor, "batch channels h w"]:
        """Latents as the denoiser wants them."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        return latents if scale is None else scale(latents, t)

    def step(
        self, output: Float[Tensor, "batch channels h w"], t: Tensor, latents: Float[Tensor, "batch channels h w"]
    ) -> Float[Tensor, "batch channels h w"]:
        """The latents after timestep `t`."""
        return self.scheduler.step(output, t, latents).prev_sample

    def transition(
        self, output: Float[Tensor, "batch channels h w"], t: Tensor, latents: Float[Tensor, "batch channels h w"]
    ) -> tuple[Float[Tensor, "batch channels h w"], Float[Tensor, "batch channels h w"]]:
        """Mean and standard deviation of a step that is drawn: DDIM with eta = 1 (Song et al. 2021, eq. 12 and 16).

        Raises:
            UsageError: this sampler cannot draw its steps.
        """
        if not isinstance(self.scheduler, DDIMScheduler):
            raise UsageError("sampling.scheduler: a policy gradient draws its steps, which ddim alone can do here")

        # From a level without any signal the step is noise alone, and on some machines rounding leaves diffusers with
        # the root of a negative number.
        some_signal = self.scheduler.alphas_cumprod[int(t)] > 0  # type: ignore[attr-defined]
        eta = 1.0 if some_signal else 1 - 1e-6

        def with_noise(prediction: Tensor, noise: Tensor) -> Tensor:
            return self.scheduler.step(prediction, t, latents, eta=eta, variance_noise=noise).prev_sample

        mean = with_noise(output, torch.zeros_like(latents))
        return mean, with_noise(output.detach(), torch.ones_like(latents)) - mean.detach()


@dataclass(frozen=True)
class FlowSampler(Sampler):
    """Euler's steps along a flow, in the latents' own precision; diffusers' scheduler rounds to float32."""

    def _sigmas(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The noise levels before and after the step of a timestep."""
        index = int((self.timesteps == t).nonzero()[0])
        return self.scheduler.sigmas[index], self.scheduler.sigmas[index + 1]

    def step(
        self, output: Float[Tensor, "batch channels h w"], t: Tensor, latents: Float[Tensor, "batch channels h w"]
    ) -> Float[Tensor, "batch channels h w"]:
        now, after = self._sigmas(t)
        return latents + (after - now).to(latents) * output

    def transition(
        self, output: Float[Tensor, "batch channels h w"], t: Tensor, latents: Float[Tensor, "batch channels h w"]
    ) -> tuple[Float[Tensor, "batch channels h w"], Float[Tensor, "batch channels h w"]]:
        """Mean and standard deviation of a step of the stochastic equation with the flow's own marginals (Flow-GRPO,
        Liu et al. 2025, eq. 12): sigma_t = a sqrt(s / (1 - s))."""
        now, after = (level.to(latents) for level in self._sigmas(t))
        step = after - now
        # The first level is all noise, where sigma_t has no bound: there it is the second one's.
        bounded = torch.where(now == 1, self.scheduler.sigmas[1].to(latents), now)
        strength = DRAWN * (now / (1 - bounded)).sqrt()
        drift = output + strength**2 / (2 * now) * (latents + (1 - now) * output)
        return latents + step * drift, (strength * (-step).sqrt()).expand_as(latents)
