"""TextCraftor (arXiv 2403.18978): tune the text encoder by the gradient of what rewards see in its pictures.

prompts -> text encoder -> sampling chain -> decoder -> images -> rewards, and the gradient all the way back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from textcraftor.data.prompts import PromptDraw
from textcraftor.inference.generate import Sampling
from textcraftor.models.model import Model
from textcraftor.rewards.total import RewardSum
from textcraftor.sampling.chain import Chain
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.sampling.gradients import Rollout
from textcraftor.training.activations import Activations
from textcraftor.training.latents import PictureDraw
from textcraftor.training.phases import Phases
from textcraftor.training.processes import processes_of_this_run
from textcraftor.training.state import TrainingState


@dataclass(frozen=True)
class RewardTuning:
    """Ascends on what rewards say of the model's own pictures; `training.loop.tune` takes its steps.

    Args:
        rollout: the gradient policy.
        schedule: which encoder conditions which noise level, here and wherever the encoder is used later.
        detach_negative: no gradient through the unconditional branch.
    """

    model: Model
    rewards: RewardSum
    rollout: Rollout
    schedule: ConditioningSchedule
    sampling: Sampling
    draw: PromptDraw | PictureDraw
    detach_negative: bool = False

    def gradient(
        self, state: TrainingState, rows: Sequence[int], batch_size: int, phases: Phases
    ) -> tuple[Tensor, dict[str, int]]:
        """Add the gradient of minus the mean reward over these rows of the step's batch; see `Objective`.

        Returns:
            (2 + 2 * rewards,), the loss, the rewards' means, their weighted total and their mean squares; and how often
            the denoiser was called, and how often with a gradient.
        """
        prompts, seeds = self.draw(state.step, batch_size)
        sums = torch.zeros(2 + 2 * len(self.rewards.scorers), dtype=torch.float64, device=self.model.device)
        processes = processes_of_this_run().num_processes
        for part, counted in state.plan.micro_batches(rows, -(-batch_size // processes)):
            part_prompts = [prompts[row] for row in part]
            numbers = [seeds[row] for row in part]
            clean = self.draw.clean(state.step, batch_size, part)
            images, chain = self.pictures(part_prompts, numbers, state.step, state.plan.kept_steps, phases, clean)
            share = counted * processes / batch_size
            with phases("reward"):
                scores = self.rewards(images, part_prompts * (len(images) // len(part_prompts)))
                if chain.log_prob is None:
                    objective = self.rewards.objective(scores)
                    loss = -share * (objective if chain.weight is None else chain.weight * objective).mean()
                else:
                    loss = -share * (self.rewards.advantage(scores) * chain.log_prob).mean()
                means, squares = self.rewards.moments(scores).chunk(2)
                finite = torch.where(squares.isfinite().all(), 1.0, math.nan)  # a broken score must not teach anything
                total = self.rewards.total(scores).detach().double().mean()[None]
            with phases("backward"):
                state.scaler.scale(loss * finite).backward()
            sums += torch.cat([loss.detach()[None].double(), share * torch.cat([means, total, squares])])
        return sums, {"denoiser_calls": chain.calls, "gradient_steps": chain.gradient_steps}

    def pictures(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        step: int,
        kept_steps: int | None,
        phases: Phases,
        clean: Tensor | None = None,
    ) -> tuple[Tensor, Chain]:
        """Images with gradients, and the chain that made them; some policies give several images a prompt."""
        with phases("encode"):
            encoded = self.sampling.encode(self.model, prompts, self.schedule.encoders)
        with phases("chain"):
            chain = self.sampling.chain(
                self.model,
                seeds,
                rng=self.draw.rng(step),
                detach_negative=self.detach_negative,
                kept_steps=kept_steps,
                clean=clean,
            )
            latents = self.rollout(chain, chain.start(), partial(self.schedule.at, encoded))
        with phases("decode"):
            return self.model.decode(latents), chain

    @property
    def names(self) -> list[str]:
        return [*(f"reward/{name}" for name in self.rewards.scorers), "total"]

    def observe(self, figures: Tensor) -> None:
        means, _, squares = figures.split([len(self.rewards.scorers), 1, len(self.rewards.scorers)])
        self.rewards.observe(torch.cat([means, squares]))

    def headline(self, figures: Mapping[str, float]) -> str:
        return f"total={figures['total']:.3f}"

    def replay(self, step: int, batch_size: int) -> dict[str, Any]:
        prompts, seeds = self.draw(step, batch_size)
        return {"prompts": prompts, "seeds": seeds}

    def costs(self) -> Activations:
        return Activations(self, max(self.draw.prompts, key=len))
