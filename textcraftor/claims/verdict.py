"""What the pictures of a claim's arms say of it: effects with their intervals, and verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from textcraftor.config.claims import Check
from textcraftor.errors import UsageError
from textcraftor.evaluation.statistics import crossed_difference, paired_difference

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
BEYOND = 1 + 0.8416 / 1.96  # normal quantiles of 80 % and of a 95 % interval's end


@dataclass(frozen=True)
class Figures:
    """The measures of an arm's pictures.

    Args:
        measures: each (training seeds, prompts, pictures of a prompt).
        trained: whether the first axis is of training seeds; otherwise nothing was trained, and its length is 1.
    """

    measures: Mapping[str, np.ndarray]
    trained: bool

    @classmethod
    def joined(cls, each: Sequence[Mapping[str, np.ndarray]], trained: bool) -> Figures:
        """Those of several evaluations, one for every training seed, each measure (prompts, pictures)."""
        shared = [name for name in each[0] if all(name in one for one in each)]
        return cls({name: np.stack([one[name] for one in each]) for name in shared}, trained)

    def of(self, measure: str) -> np.ndarray:
        """The means over each prompt's pictures, (training seeds, prompts)."""
        if measure not in self.measures:
            raise UsageError(f"no measure {measure} in these pictures; there are {', '.join(self.measures)}")
        return self.measures[measure].mean(2, dtype=float)


def judged(check: Check, arms: Mapping[str, Figures]) -> dict[str, Any]:
    """One comparison.

    Returns:
        mean, low and high of the effect, null where there is no interval; `sd` of the training seeds' effects; `n`
        prompts; `seeds`, 0 where nothing was trained; `detectable`, see there; and `verdict`.
    """
    named = [arms[name] for name in (*check.of, *check.order)]
    trained, values = any(one.trained for one in named), effect(check, arms)
    nothing, above = np.zeros((1, *values.shape[1:], 1)), values[..., None]
    change = crossed_difference(nothing, above) if trained else paired_difference(nothing[0], above[0])
    mean, low, high = (None if math.isnan(change[name]) else change[name] for name in ("mean", "low", "high"))
    several = len(values) > 1 and mean is not None
    return {
        **{"mean": mean, "low": low, "high": high, "n": change["n"]},
        "sd": float(np.nanmean(values, 1).std(ddof=1)) if several else None,
        "seeds": len(values) if trained else 0,
        "detectable": None if low is None else detectable(change["low"], change["high"]),
        "verdict": verdict(check.holds, check.margin, low, high),
    }


def effect(check: Check, arms: Mapping[str, Figures]) -> np.ndarray:
    """The effect of each training seed on each prompt, (training seeds, prompts): the weighted sum of the arms, or the
    rank correlation of the measure with the order of the arms (Spearman's; 0 where the arms are all alike).

    Page's L of one block is linear in that correlation: L = k (k + 1)^2 / 4 + rho (k^3 - k) / 12 with k arms.
    """
    values = [arms[name].of(check.measure) for name in (*check.of, *check.order)]
    if len({one.shape[1] for one in values}) > 1:
        raise UsageError(f"{check.measure}: arms of different prompts cannot be compared prompt by prompt")
    several = np.stack(np.broadcast_arrays(*values))
    if check.of:
        return np.tensordot(np.array(list(check.of.values()), float), several, 1)
    ranks = rankdata(several, axis=0, nan_policy="propagate")
    centred, wanted = ranks - ranks.mean(0), np.arange(len(ranks)) - (len(ranks) - 1) / 2
    norm = np.sqrt((centred**2).sum(0) * (wanted**2).sum())
    return np.tensordot(wanted, centred, 1) / np.where(norm == 0, 1, norm)


def verdict(holds: str, margin: float, low: float | None, high: float | None) -> str:
    """What an interval says: `supported` where all of it lies where the claim says, `contradicted` where none does."""
    if low is None or high is None:
        return UNDECIDED
    least, most = {"above": (margin, math.inf), "below": (-math.inf, margin), "within": (-margin, margin)}[holds]
    if least < low and high < most:
        return SUPPORTED
    return CONTRADICTED if high <= least or low >= most else UNDECIDED


def overall(verdicts: Iterable[str]) -> str:
    """Of a claim: one comparison that is contradicted contradicts it; all must be supported to support it."""
    given = {*verdicts}
    return CONTRADICTED if CONTRADICTED in given else SUPPORTED if given == {SUPPORTED} else UNDECIDED


def detectable(low: float, high: float) -> float:
    """How far beyond the margin an effect must lie to be shown with a power of at least 80 %, at this precision.

    The half width is at least 1.96 standard errors, so an estimate of (1 + .8416 / 1.96) half widths is .8416 standard
    errors or more beyond what the interval must exclude.
    """
    return (high - low) / 2 * BEYOND
