"""Paired comparison of two runs over the same prompts and seeds."""

from __future__ import annotations

import numpy as np
from scipy.stats import bootstrap


def paired_difference(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Mean of after - before over prompts with its bootstrap 95 % interval (BCa, 5,000 resamples, fixed seed), and the
    share of prompts that rose, those that stayed counted half.

    Args:
        before, after: shape (prompts, seeds); a prompt is the unit, its seeds are averaged first. NaN marks what
            a prompt cannot be measured by, in both alike.
    """
    difference = (after - before).mean(1)
    difference = difference[~np.isnan(difference)]
    won = (difference > 0).mean() + (difference == 0).mean() / 2 if len(difference) else float("nan")
    if len(difference) < 2 or np.ptp(difference) == 0:
        value = float(difference.mean()) if len(difference) else float("nan")
        return {"mean": value, "low": value, "high": value, "win_rate": float(won)}
    interval = bootstrap(
        (difference,), np.mean, n_resamples=5000, rng=np.random.default_rng(0), vectorized=True
    ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    return {"mean": float(difference.mean()), "low": low, "high": high, "win_rate": float(won)}
