"""How well raters agree: Krippendorff's alpha, of all of them and of each with the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from textcraftor.evaluation.statistics import paired_difference

LEAST_SHARED = 5  # answers that others gave too, before a rater is called an outlier
LEAST_SHARE = 0.5  # of the others' agreement, below which a rater is one

Answers = Sequence[Mapping[str, float]]  # of each thing that was rated, by rater


def alpha(units: Sequence[Sequence[float]]) -> float:
    """Krippendorff's alpha for numbers: 1 - observed / expected disagreement, disagreement being the squared
    difference ("Computing Krippendorff's Alpha-Reliability", 2011); 1 is perfect, 0 is chance.

    Args:
        units: the values that each thing was given, by whoever rated it; one value alone cannot agree, and is left out.

    Returns:
        NaN where nothing was rated twice, or all values are the same.
    """
    rated = [np.asarray(values, float) for values in units if len(values) > 1]
    expected = _expected(rated)
    if math.isnan(expected):
        return math.nan
    # Of n values, the sum of all ordered pairs' squared differences is 2 n^2 times their variance.
    observed = sum(2 * len(values) ** 2 * values.var() / (len(values) - 1) for values in rated)
    return 1 - float(observed) / sum(map(len, rated)) / expected


def _expected(rated: Sequence[np.ndarray]) -> float:
    """The mean squared difference of two values of whatever things; NaN where there is none."""
    values = np.concatenate([*rated, np.zeros(0)])
    return float(2 * values.var(ddof=1)) if len(values) > 1 and np.ptp(values) > 0 else math.nan


def mirrored(answers: Answers) -> list[dict[str, float]]:
    """Answers of -1, 0 and 1 to pairs, each a second time with the pair turned round.

    Which of two pictures comes first is no choice of a rater who does not know their models, so a rater by chance picks
    either; without this, raters who agree that one model is better would hardly be above chance.
    """
    return [dict(one) for one in answers] + [{name: -value for name, value in one.items()} for one in answers]


def agreement(answers: Answers, pairs: bool) -> dict[str, Any]:
    """Alpha of all raters and of each with the others.

    A rater's own alpha is the mean, over what others rated too, of 1 - squared difference from them / expected, with
    Student's t 95 % interval. An outlier is a rater whose interval lies below half of the others' alpha, by at least
    five such answers; that takes three raters.

    Args:
        pairs: whether answers are to pairs, -1, 0 and 1, rather than grades.

    Returns:
        `alpha`; `shared`, how many things several raters rated; `raters`: by name `answers`, `alpha` {mean, low, high,
        n} and `outlier`.
    """
    shared = [one for one in answers if len(one) > 1]
    counted = mirrored(shared) if pairs else shared
    expected = _expected([np.array([*one.values()]) for one in counted])
    raters = {}
    for name, count in sorted(Counter(name for one in answers for name in one).items()):
        own = _closeness(name, shared, expected)
        bound = own["mean"] if math.isnan(own["high"]) else own["high"]
        suspect = own["n"] >= LEAST_SHARED and bound < LEAST_SHARE
        outlier = suspect and bound < LEAST_SHARE * alpha([_without(name, one) for one in counted])
        raters[name] = {"answers": count, "alpha": own, "outlier": bool(outlier)}
    return {"alpha": alpha([[*one.values()] for one in counted]), "shared": len(shared), "raters": raters}


def _closeness(name: str, shared: Answers, expected: float) -> dict[str, float]:
    """A rater's alpha with the others: mean, interval and the number of shared answers."""
    apart = [np.mean((one[name] - np.array(_without(name, one))) ** 2) for one in shared if name in one]
    closeness = 1 - np.array(apart, float).reshape(-1, 1) / expected
    figures = paired_difference(np.zeros_like(closeness), closeness)
    return {key: figures[key] for key in ("mean", "low", "high", "n")}


def _without(name: str, one: Mapping[str, float]) -> list[float]:
    return [value for other, value in one.items() if other != name]
