"""Tunes on captioned pictures by the denoising loss: the sibling of reward tuning that needs data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from textcraftor.data.blend import Example, RecordDraw
from textcraftor.inference.generate import batches
from textcraftor.models.base import Branch
from textcraftor.models.model import Model
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.training.counting import cost_of, make_gradients, recomputing
from textcraftor.training.densities import Densities
from textcraftor.training.latents import Latents
from textcraftor.training.memory import Plan, as_many
from textcraftor.training.phases import Phases
from textcraftor.training.processes import processes_of_this_run, rows_of
from textcraftor.training.state import TrainingState


@dataclass(frozen=True)
class CaptionTuning:
    """Descends on the denoising loss over a data set's latents; `training.loop.tune` takes its steps.

    Args:
        schedule: which encoder conditions which noise level.
        densities: which noise levels are drawn, and what each weighs.
    """

    model: Model
    schedule: ConditioningSchedule
    draw: RecordDraw
    latents: Latents
    densities: Densities = field(default_factory=Densities)

    def gradient(
        self, state: TrainingState, rows: Sequence[int], batch_size: int, phases: Phases
    ) -> tuple[Tensor, dict[str, int]]:
        """Add the gradient of the mean weighted loss over these rows of the step's batch; see `Objective`.

        Returns:
            (2,), the weighted loss and the plain squared error; and how often the denoiser was called.
        """
        examples = self.draw(state.step, batch_size)
        sums = torch.zeros(2, dtype=torch.float64, device=self.model.device)
        for part, counted in self.parts(state.plan, examples, rows):
            losses, errors = self.losses([examples[row] for row in part], phases)
            share = (counted > 0) * processes_of_this_run().num_processes / batch_size
            with phases("backward"):
                state.scaler.scale(share * losses.sum()).backward()
            sums += share * torch.stack([losses.detach().sum(), errors.detach().sum()]).double()
        return sums, {"denoiser_calls": 1, "gradient_steps": 1}

    def parts(self, plan: Plan, examples: Sequence[Example], rows: Sequence[int]) -> list[tuple[Sequence[int], int]]:
        """Rows of pictures of one size each, as `Plan.micro_batches` gives them: as many parts in every process."""

        def alike(some: Sequence[int]) -> list[Sequence[int]]:
            return [part for group in self.latents.by_size(examples, some) for part in batches(group, plan.micro_batch)]

        every = range(processes_of_this_run().num_processes)
        return as_many(alike(rows), max(len(alike(rows_of(len(examples), process))) for process in every))

    def losses(
        self, examples: Sequence[Example], phases: Phases
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """See `denoising_losses`."""
        return denoising_losses(self.model, self.schedule, self.latents, self.densities, examples, phases)

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


def denoising_losses(
    model: Model,
    schedule: ConditioningSchedule,
    stored: Latents,
    densities: Densities,
    examples: Sequence[Example],
    phases: Phases | None = None,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The weighted loss of each example, all of one size, and its squared error without the weight."""
    noising, phases = model.noise_schedule, phases or Phases(model.device)
    latents = torch.stack([stored[example.index] for example in examples]).to(model.device)
    size = stored.size_of(examples[0].index)
    noise = model.noise([example.noise_seed for example in examples], *size)
    timesteps = densities.timesteps(model, examples)
    with phases("encode"):
        branch = _branch(model, schedule, [example.caption for example in examples], timesteps, size)
    timesteps = timesteps.to(model.device)
    with phases("denoise"):
        output = model.predict(noising.add_noise(latents, noise, timesteps), timesteps, branch)
        errors = (output.float() - noising.target(latents, noise, timesteps)).square().mean((1, 2, 3))
        return errors * densities.weights(noising, timesteps), errors


def _branch(
    model: Model, schedule: ConditioningSchedule, captions: Sequence[str], timesteps: Tensor, size: tuple[int, int]
) -> Branch:
    """Each caption as the schedule conditions its own noise level."""
    encoded = {name: model.encode(captions, None, name, size) for name in schedule.encoders}
    if schedule.early == schedule.late:
        return schedule.at(encoded, timesteps[0]).prompt

    def at(row: int) -> Branch:
        return schedule.at({name: one.row(row) for name, one in encoded.items()}, timesteps[row]).prompt

    return Branch.cat([at(row) for row in range(len(captions))])


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
            with recomputing(tuning.model, denoiser=blocks):
                cost = cost_of(lambda: tuning.losses([self.example] * rows, Phases(tuning.model.device))[0])
            self.measured[blocks, rows] = cost.peak
        return self.measured[blocks, rows]

    def peak(self, kept: int, blocks: bool, decoder: bool, rows: int, together: bool = True) -> float:
        one, two = (self._peak_of(blocks, some) for some in (1, 2))
        return one + (two - one) * (rows - 1) if rows > 1 else one
