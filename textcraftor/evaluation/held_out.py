"""What scorers that training does not hear say of a change, each over the prompts that it judges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from textcraftor.evaluation.evaluate import Evaluation
from textcraftor.evaluation.statistics import paired_z, seed_spread

LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class HeldOut:
    """The held-out scorers of a run, compared with the model before training.

    Args:
        before: the same prompts and seeds before training.
        weights: of the mix; scorers with weight 0 are held out, the total where there is none.
        spreads: the unit of each scorer, see `seed_spreads`.
        applies: which prompts each scorer judges, bool (prompts,); all where it is missing.
    """

    before: Evaluation
    weights: Mapping[str, float]
    spreads: Mapping[str, float]
    applies: Mapping[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def names(self) -> list[str]:
        """The held-out scorers that judge any of these prompts."""
        names = held_out_names(self.weights)
        return [name for name in names if np.any(self.applies.get(name, True))] or ["total"]

    def changes(self, after: Evaluation) -> dict[str, np.ndarray]:
        """Of each scorer: every prompt's change in units of its spread, (prompts,), NaN where it does not judge."""
        changes = {}
        for name in self.names:
            change = (after.measures[name] - self.before.measures[name]).mean(1, dtype=float)
            judged = np.broadcast_to(self.applies.get(name, True), change.shape)
            changes[name] = np.where(judged, change, np.nan) / max(self.spreads[name], LEAST_SPREAD)
        return changes

    def mean(self, after: Evaluation) -> float:
        """The mean over scorers of each one's mean change."""
        return float(np.mean([np.nanmean(change) for change in self.changes(after).values()]))

    def error(self, after: Evaluation) -> float:
        """The standard error of `mean` over prompts; 0 of a single prompt.

        Scorers judge different prompts, so it is taken over each prompt's part in the mean: of m scorers, of which the
        i-th judges n_i prompts, sum_i (change_i - mean_i) / (n_i * m).
        """
        changes = np.array([*self.changes(after).values()])
        known = ~np.isnan(changes)
        parts = (changes - np.nanmean(changes, 1, keepdims=True)) / known.sum(1, keepdims=True) / len(changes)
        count = np.count_nonzero(known.any(0))
        return float(np.sqrt(np.square(np.nansum(parts, 0)).sum() * count / (count - 1))) if count > 1 else 0.0

    def worst(self, after: Evaluation) -> tuple[float, str]:
        """The z of the scorer that fell most surely, see `paired_z`, and its name."""
        return min((paired_z(change[~np.isnan(change)]), name) for name, change in self.changes(after).items())


def held_out_names(weights: Mapping[str, float]) -> list[str]:
    """The scorers that training does not hear, which have weight 0; all scorers' total where there is none."""
    return [name for name, weight in weights.items() if weight == 0] or ["total"]


def seed_spreads(several: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Each measure's standard deviation over the pictures of one prompt, pooled over all prompts.

    Differences between prompts do not count, so a change is as large on similar prompts as on a varied set. If no
    prompt has two pictures, it is the standard deviation over all pictures.
    """
    by_name: dict[str, list[np.ndarray]] = {}
    for measures in several:
        for name, values in measures.items():
            by_name.setdefault(name, []).append(values)
    spreads = {name: seed_spread(*values) for name, values in by_name.items()}
    return {
        name: float(np.nanstd(np.concatenate([one.ravel() for one in by_name[name]]))) if np.isnan(spread) else spread
        for name, spread in spreads.items()
    }
