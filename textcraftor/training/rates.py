"""The learning rate of each step: a function of the step alone, so that a resumed run needs nothing but its number."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

WITH_CYCLES = "cosine_with_restarts"
# What share of the whole rate is left after this share of the way from the end of the warm-up to the end.
FALLS: dict[str, Callable[[float], float]] = {
    "linear": lambda way: 1 - way,
    "cosine": lambda way: (1 + math.cos(math.pi * way)) / 2,
    WITH_CYCLES: lambda way: (1 + math.cos(math.pi * way)) / 2,
    "polynomial": lambda way: 1 - way,
    "constant": lambda way: 1.0,
    "constant_with_warmup": lambda way: 1.0,
}
SCHEDULES = [*FALLS]


def share_of_rate(schedule: str, warmup: int, steps: int, cycles: int = 1) -> Callable[[int], float]:
    """What share of its learning rate a step has, in (0, 1]; steps count from 0.

    Diffusers' schedules, but for their edges: step s of the warm-up has (s + 1) / warmup instead of s / warmup, for a
    rate of 0 teaches nothing, and each cycle begins with exactly the whole rate.

    Args:
        schedule: one of `SCHEDULES`; `constant` has no warm-up.
        warmup: so many steps rise to the whole rate.
        steps: of the training in all.
        cycles: of `cosine_with_restarts`.
    """
    rising = 0 if schedule == "constant" else warmup
    falling = steps - rising
    falls = cycles if schedule == WITH_CYCLES else 1

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return FALLS[schedule](falls * (step - rising) % falling / falling)

    return share


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
