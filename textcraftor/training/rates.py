"""The learning rate of each step: a function of the step alone, so that a resumed run needs nothing but its number."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.optimization import SchedulerType, get_scheduler

SCHEDULES = [one.value for one in SchedulerType if one is not SchedulerType.PIECEWISE_CONSTANT]
WITH_CYCLES = SchedulerType.COSINE_WITH_RESTARTS.value


def share_of_rate(schedule: str, warmup: int, steps: int, cycles: int = 1) -> Callable[[int], float]:
    """What share of its learning rate a step has, in (0, 1]; steps count from 0.

    Of diffusers' schedules, but for the warm-up: there step s has (s + 1) / warmup instead of s / warmup, for a rate of
    0 teaches nothing.

    Args:
        schedule: one of `SCHEDULES`.
        warmup: so many steps rise to the whole rate.
        steps: of the training in all.
        cycles: of `cosine_with_restarts`.
    """
    # Of the optimizer it takes the peak alone: with 1 what it returns is a share.
    unit = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    numbers = {"num_warmup_steps": warmup, "num_training_steps": steps, "num_cycles": cycles}
    share = get_scheduler(schedule, unit, **numbers).lr_lambdas[0]
    return lambda step: share(step + 1 if step < warmup else step)


class LearningRates:
    """Sets an optimiser's learning rates; each group's own is its peak.

    Args:
        share: of the peak, by step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, share: Callable[[int], float]) -> None:
        self.optimizer, self.share = optimizer, share
        self.peaks = [group["lr"] for group in optimizer.param_groups]

    def set(self, step: int) -> None:
        """Let the optimiser's next step be this one, counted from 0."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.share(step)
