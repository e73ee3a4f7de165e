"""Prompt files, and which prompts a training step draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from textcraftor.errors import UsageError


def read_prompts(path: str | Path | None) -> list[str]:
    """The prompts of a text file, one a line; empty lines are left out.

    Raises:
        UsageError: no such file, or no prompt in it.
    """
    if path is None:
        raise UsageError("prompts.path is needed: give a text file with one prompt a line")
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"prompts.path={path} does not exist: give a text file with one prompt a line")
    prompts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise UsageError(f"prompts.path={path} holds no prompt: write one prompt a line")
    return prompts


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
            order = np.random.default_rng((self.seed, turn)).permutation(len(self.prompts))
            chosen.append(self.prompts[order[index]])
        seeds = np.random.default_rng((self.seed, step, 1)).integers(2**40, 2**48, batch_size)
        return chosen, [int(seed) for seed in seeds]
