"""Which noise levels training on pictures draws, and what each of them weighs in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from jaxtyping import Float
from torch import Tensor

from textcraftor.data.blend import Example
from textcraftor.models.model import Model
from textcraftor.models.noise import NoiseSchedule
from textcraftor.models.seeds import seed_of_32_bits


@dataclass(frozen=True)
class Densities:
    """Of diffusion models the first two, of flow models the others.

    Args:
        noise_bias: timesteps are T (1 - level ** noise_bias): 1 is uniform, more than 1 prefers high noise, where the
            text decides.
        min_snr: gamma of the min-SNR weights (Hang et al. 2023, section 3.4), which keep easy noise levels from ruling,
            5 in the paper; null leaves every noise level its own weight.
        weighting_scheme: logit_normal, mode, cosmap, sigma_sqrt or none, as diffusers names them (Esser et al. 2024,
            section 3.1).
        logit_mean, logit_std: of logit_normal.
        mode_scale: of mode.
    """

    noise_bias: float = 1.0
    min_snr: float | None = 5.0
    weighting_scheme: str = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29

    def timesteps(self, model: Model, examples: Sequence[Example]) -> Float[Tensor, " batch"] | Tensor:
        """One for each example, a function of its level or of its noise's seed."""
        count = model.noise_schedule.timesteps
        if model.noise_schedule.prediction != "velocity":
            levels = torch.tensor([example.level for example in examples])
            return ((1 - levels**self.noise_bias) * count).long().clamp(max=count - 1)
        drawn = torch.cat([self._drawn(example.noise_seed) for example in examples])
        shifted = FlowMatchEulerDiscreteScheduler.from_config(model.pipeline.scheduler.config).timesteps
        return shifted[(drawn * count).long().clamp(max=count - 1)]

    def _drawn(self, seed: int) -> Float[Tensor, 1]:
        """A share of the noise levels, from the highest on."""
        return compute_density_for_timestep_sampling(
            self.weighting_scheme,
            1,
            self.logit_mean,
            self.logit_std,
            self.mode_scale,
            generator=torch.Generator().manual_seed(seed_of_32_bits(seed, 7)),
        )

    def weights(self, schedule: NoiseSchedule, timesteps: Tensor) -> Float[Tensor, " batch"]:
        """What each example's squared error weighs."""
        signal, noise = (level.view(-1) for level in schedule.levels(timesteps))  # type: ignore[union-attr]
        if schedule.prediction == "velocity":
            return compute_loss_weighting_for_sd3(self.weighting_scheme, noise)
        if self.min_snr is None:
            return torch.ones_like(noise)
        snr = (signal / noise) ** 2
        match schedule.prediction:
            case "epsilon":
                return (self.min_snr / snr).clamp(max=1)  # min(snr, gamma) / snr, which is 1 where there is no signal
            case "v_prediction":
                return snr.clamp(max=self.min_snr) / (snr + 1)
            case _:
                return snr.clamp(max=self.min_snr)
