"""Paired comparison of two runs over the same prompts and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.stats import bootstrap


def paired_difference(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Mean of after - before over prompts with its bootstrap 95 % interval (BCa, 5,000 resamples, fixed seed), and the
    share of prompts that rose, those that stayed counted half. One prompt has no interval: its bounds are NaN.

    Args:
        before, after: shape (prompts, seeds); a prompt is the unit, its seeds are averaged first. NaN marks what
            a prompt cannot be measured by, in both alike.
    """
    difference = (after - before).mean(1)
    difference = difference[~np.isnan(difference)]
    if not len(difference):
        return dict.fromkeys(("mean", "low", "high", "win_rate"), math.nan)
    mean, won = float(difference.mean()), float((difference > 0).mean() + (difference == 0).mean() / 2)
    if len(difference) < 2:
        low = high = math.nan
    elif np.ptp(difference) == 0:
        low = high = mean
    else:
        interval = bootstrap(
            (difference,), np.mean, n_resamples=5000, rng=np.random.default_rng(0), vectorized=True
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return {"mean": mean, "low": low, "high": high, "win_rate": won}


def interval_text(change: Mapping[str, float], digits: int) -> str:
    """The interval of what `paired_difference` returned, for tables; `none` where there is none."""
    low, high = change["low"], change["high"]
    return "none" if math.isnan(low) else f"[{low:+.{digits}f}, {high:+.{digits}f}]"
