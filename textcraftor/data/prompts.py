"""Which prompts a training step draws, and which are held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from textcraftor.models.seeds import run_rng

WANTED_ONE_IN = 3  # of watched prompts
COLUMNS = ("prompt", "text", "caption")  # the names under which tables keep prompts, in any case


def split_held_out(
    prompts: Sequence[str],
    evaluated: int,
    watched: int,
    spare: Sequence[str] = (),
    wanted: Callable[[str], object] | None = None,
) -> tuple[list[str], list[str]]:
    """Of prompts that are not trained on, so many to evaluate with and so many to watch; of too few, neither gets more
    than it asks for, and those watched at most half, unless that leaves more than are to be evaluated.

    Args:
        spare: further prompts that may be watched.
        wanted: at least a third of those watched are prompts of which this is true, as far as there are spare ones.
    """
    chosen, spare = list(prompts[: evaluated + watched]), [*prompts[evaluated + watched :], *spare]
    watched = max(1, min(watched, max(len(chosen) - evaluated, len(chosen) // 2)))
    split = chosen[:-watched], chosen[-watched:]
    if wanted is None:
        return split
    free = [prompt for prompt in dict.fromkeys(spare) if prompt not in chosen]
    return split[0], with_enough(split[1], free, wanted)


def with_enough(prompts: Sequence[str], spare: Sequence[str], wanted: Callable[[str], object]) -> list[str]:
    """The same prompts, the last unwanted ones of them exchanged for spare ones until a third is wanted."""
    kept = list(prompts)
    lacking = len(kept) // WANTED_ONE_IN - sum(map(bool, map(wanted, kept)))
    fresh = [prompt for prompt in spare if wanted(prompt)][: max(0, lacking)]
    unwanted = [place for place, prompt in enumerate(kept) if not wanted(prompt)]
    for place, prompt in zip(reversed(unwanted), fresh, strict=False):
        kept[place] = prompt
    return kept


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
