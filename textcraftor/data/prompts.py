"""Which prompts a training step draws, and which are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from textcraftor.models.seeds import run_rng

COLUMNS = ("prompt", "text", "caption")  # the names under which tables keep prompts, in any case


def split_held_out(prompts: Sequence[str], evaluated: int, watched: int) -> tuple[list[str], list[str]]:
    """Of prompts that are not trained on, so many to evaluate with and so many to watch; of too few, neither gets more
    than it asks for, and those watched at most half, unless that leaves more than are to be evaluated."""
    prompts = list(prompts[: evaluated + watched])
    watched = max(1, min(watched, max(len(prompts) - evaluated, len(prompts) // 2)))
    return prompts[:-watched], prompts[-watched:]


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Draws what all samples of a step share; the same in every process."""
    return np.random.default_rng((seed, step, 2))


@dataclass(frozen=True)
class PromptDraw:
    """Draws prompts and noise seeds for a step: a function of seed and step alone, so a resumed run goes on alike.

    Args:
        prompts: all of them; a pass over the list is shuffled anew.
        seed: of the run.
    """

    prompts: list[str]
    seed: int

    def __call__(self, step: int, batch_size: int) -> tuple[list[str], list[int]]:
        """The prompts and noise seeds of one step, `batch_size` each."""
        chosen = []
        for position in range(step * batch_size, (step + 1) * batch_size):
            turn, index = divmod(position, len(self.prompts))
            order = run_rng(self.seed, turn).permutation(len(self.prompts))
            chosen.append(self.prompts[order[index]])
        seeds = np.random.default_rng((self.seed, step, 1)).integers(2**40, 2**48, batch_size)
        return chosen, [int(seed) for seed in seeds]

    def rng(self, step: int) -> np.random.Generator:
        """Draws what all samples of a step share; the same in every process."""
        return step_rng(self.seed, step)

    def clean(self, step: int, batch_size: int, rows: Sequence[int]) -> None:
        """Prompts alone come with no picture to start from."""
