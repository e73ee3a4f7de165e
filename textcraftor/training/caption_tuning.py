"""Tunes on captioned pictures by the denoising loss: the sibling of reward tuning that needs data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from diffusers.training_utils import compute_snr
from jaxtyping import Float
from torch import Tensor

from textcraftor.data.blend import Example, RecordDraw
from textcraftor.errors import UsageError
from textcraftor.models.base import Conditioning
from textcraftor.models.stable_diffusion import StableDiffusion
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.training.latents import Latents
from textcraftor.training.memory import cost_of, make_gradients, recomputing
from textcraftor.training.phases import Phases
from textcraftor.training.processes import processes_of_this_run
from textcraftor.training.state import TrainingState


def timesteps_at(scheduler: SchedulerMixin, levels: Float[Tensor, " batch"], noise_bias: float) -> Tensor:
    """Training timesteps T (1 - level ** noise_bias): 1 is uniform, more than 1 prefers high noise, where the text
    decides."""
    count = scheduler.config.num_train_timesteps
    return ((1 - levels**noise_bias) * count).long().clamp(max=count - 1)


def target_of(
    scheduler: SchedulerMixin,
    latents: Float[Tensor, "batch channels h w"],
    noise: Float[Tensor, "batch channels h w"],
    timesteps: Tensor,
) -> Float[Tensor, "batch channels h w"]:
    """What the denoiser learns to say: epsilon (Ho et al. 2020, eq. 14) or v (Salimans & Ho 2022, appendix D)."""
    match scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return scheduler.get_velocity(latents, noise, timesteps)
        case other:
            raise UsageError(f"prediction_type={other} cannot be trained; use epsilon or v_prediction")


def loss_weights(scheduler: SchedulerMixin, timesteps: Tensor, gamma: float | None) -> Float[Tensor, " batch"]:
    """Min-SNR weights (Hang et al. 2023, section 3.4), which keep easy noise levels from ruling; null gamma: all 1."""
    if gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    snr = compute_snr(scheduler, timesteps)
    v_prediction = scheduler.config.prediction_type == "v_prediction"
    return snr.clamp(max=gamma) / (snr + 1 if v_prediction else snr)


@dataclass(frozen=True)
class CaptionTuning:
    """Descends on the denoising loss over a data set's latents; `training.loop.tune` takes its steps.

    Args:
        schedule: which encoder conditions which noise level.
        noise_bias: see `timesteps_at`.
        min_snr: gamma of the min-SNR weights, 5 in the paper; null leaves every noise level its own weight.
    """

    model: StableDiffusion
    schedule: ConditioningSchedule
    draw: RecordDraw
    latents: Latents
    noise_bias: float = 1.0
    min_snr: float | None = 5.0

    def gradient(
        self, state: TrainingState, rows: Sequence[int], batch_size: int, phases: Phases
    ) -> tuple[Tensor, dict[str, int]]:
        """Add the gradient of the mean weighted loss over these rows of the step's batch; see `Objective`.

        Returns:
            (2,), the weighted loss and the plain squared error; and how often the denoiser was called.
        """
        examples = self.draw(state.step, batch_size)
        sums = torch.zeros(2, dtype=torch.float64, device=self.model.device)
        for part in state.plan.micro_batches(rows):
            losses, errors = self.losses([examples[row] for row in part], phases)
            share = processes_of_this_run().num_processes / batch_size
            with phases("backward"):
                state.scaler.scale(share * losses.sum()).backward()
            sums += share * torch.stack([losses.detach().sum(), errors.detach().sum()]).double()
        return sums, {"denoiser_calls": 1, "gradient_steps": 1}

    def losses(
        self, examples: Sequence[Example], phases: Phases
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Each example's weighted loss, and its squared error without the weight."""
        device = self.model.device
        latents = torch.stack([self.latents[example.index] for example in examples]).to(device)
        height, width = (side * self.model.vae_scale for side in latents.shape[-2:])
        noise = self.model.noise([example.noise_seed for example in examples], height, width)
        levels = torch.tensor([example.level for example in examples])
        timesteps = timesteps_at(self.scheduler, levels, self.noise_bias)
        with phases("encode"):
            prompt_embeds = self._embeds([example.caption for example in examples], timesteps)
        timesteps = timesteps.to(device)
        with phases("denoise"):
            noisy = self.scheduler.add_noise(latents, noise, timesteps)
            output = self.model.predict(noisy, timesteps, prompt_embeds)
            target = target_of(self.scheduler, latents, noise, timesteps)
            errors = (output.float() - target).square().mean((1, 2, 3))
            return errors * loss_weights(self.scheduler, timesteps, self.min_snr), errors

    def _embeds(self, captions: Sequence[str], timesteps: Tensor) -> Float[Tensor, "batch tokens width"]:
        """Each caption as the schedule conditions its own noise level."""
        encoded = {name: self.model.encode(captions, [""] * len(captions), name) for name in self.schedule.encoders}
        if self.schedule.early == self.schedule.late:
            return self.schedule.at(encoded, timesteps[0]).prompt_embeds

        def at(row: int) -> Conditioning:
            return self.schedule.at(
                {name: one.map(lambda t: t[row : row + 1]) for name, one in encoded.items()}, timesteps[row]
            )

        return torch.cat([at(row).prompt_embeds for row in range(len(captions))])

    @cached_property
    def scheduler(self) -> SchedulerMixin:
        return DDPMScheduler.from_config(self.model.scheduler_config)

    @property
    def names(self) -> tuple[str]:
        return ("squared_error",)

    def observe(self, figures: Tensor) -> None:
        """Nothing is kept."""

    def headline(self, figures: Mapping[str, float]) -> str:
        return f"loss={figures['loss']:.4f}"

    def replay(self, step: int, batch_size: int) -> dict[str, Any]:
        examples = self.draw(step, batch_size)
        return {
            "pictures": [self.draw.records[example.index].key for example in examples],
            "prompts": [example.caption for example in examples],
            "seeds": [example.noise_seed for example in examples],
        }

    def costs(self) -> DenoisingCosts:
        return DenoisingCosts(self)


class DenoisingCosts:
    """What pictures cost, see `Costs`: one and two of the data set's largest size are measured, the rest is a line."""

    gradient_steps = 1
    choices = ((1, False, True), (1, True, True))

    def __init__(self, tuning: CaptionTuning) -> None:
        self.tuning = tuning
        largest = max(range(len(tuning.latents)), key=lambda index: tuning.latents[index].numel())
        self.example = Example(largest, tuning.draw.records[largest].caption, 0, 0.5)
        self.measured: dict[tuple[bool, int], float] = {}
        make_gradients(tuning.model)

    def _peak_of(self, blocks: bool, rows: int) -> float:
        if (blocks, rows) not in self.measured:
            tuning = self.tuning
            with recomputing(tuning.model, unet=blocks):
                cost = cost_of(lambda: tuning.losses([self.example] * rows, Phases(tuning.model.device))[0])
            self.measured[blocks, rows] = cost.peak
        return self.measured[blocks, rows]

    def peak(self, kept: int, blocks: bool, decoder: bool, rows: int) -> float:
        one, two = (self._peak_of(blocks, some) for some in (1, 2))
        return one + (two - one) * (rows - 1) if rows > 1 else one
