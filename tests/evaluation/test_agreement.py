"""Agreement against the example that Krippendorff published, and a rater who answers at random."""

from __future__ import annotations

import numpy as np
import pytest

from textcraftor.evaluation.agreement import agreement, alpha, mirrored

PUBLISHED = """1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 ."""


def answers(rng: np.random.Generator, count: int, mistakes: dict[str, float]) -> list[dict[str, float]]:
    """Pairs of which one picture is better, and raters who answer the opposite with some chance."""
    truths = rng.choice([-1.0, 1.0], (count, 1))
    values = np.where(rng.random((count, len(mistakes))) < [*mistakes.values()], -truths, truths)
    return [dict(zip(mistakes, map(float, row), strict=True)) for row in values]


def test_alpha_is_the_published_one():
    """Of interval data, in "Computing Krippendorff's Alpha-Reliability" (2011)."""
    columns = zip(*(line.split() for line in PUBLISHED.splitlines()), strict=True)
    assert alpha([[float(value) for value in column if value != "."] for column in columns]) == pytest.approx(
        0.849, abs=5e-4
    )


def test_raters_who_agree_that_one_model_is_better_agree():
    """Nineteen of twenty: without turning pairs round, chance would explain it."""
    units = [{"ann": 1.0, "ben": 1.0}] * 19 + [{"ann": 1.0, "ben": -1.0}]
    assert alpha([[*one.values()] for one in units]) < 0.1
    assert alpha([[*one.values()] for one in mirrored(units)]) == pytest.approx(0.9, abs=0.01)


def test_an_outlier_is_told_from_raters_who_make_mistakes():
    """One guesses, one answers the opposite; those who err now and then are none, in 20 simulated groups."""
    rng, called = np.random.default_rng(0), {"guesses": 0, "opposite": 0, "others": 0}
    for _ in range(20):
        mistakes = {"ann": 0.1, "ben": 0.1, "cleo": 0.15, "dora": 0.1, "guesses": 0.5}
        found = agreement(answers(rng, 100, mistakes), pairs=True)["raters"]
        called["guesses"] += found["guesses"]["outlier"]
        called["others"] += sum(found[name]["outlier"] for name in ("ann", "ben", "cleo", "dora"))
        found = agreement(answers(rng, 10, {"ann": 0, "ben": 0, "opposite": 1}), pairs=True)["raters"]
        called["opposite"] += found["opposite"]["outlier"]
    assert called["guesses"] >= 17
    assert called["opposite"] == 20
    assert called["others"] == 0


def test_one_rater_has_no_agreement_and_two_have_no_outlier():
    alone = agreement([{"ann": 1.0}] * 9, pairs=True)
    assert np.isnan(alone["alpha"])
    assert (alone["shared"], alone["raters"]["ann"]["answers"], alone["raters"]["ann"]["alpha"]["n"]) == (0, 9, 0)
    two = agreement([{"ann": 1.0, "ben": -1.0}] * 9, pairs=True)
    assert two["alpha"] < 0
    assert not any(one["outlier"] for one in two["raters"].values())


def test_the_interval_of_a_raters_agreement_covers():
    """Agreement with one other of 1 - 4 x .2 / 2 = .6 in the long run, in 100 simulated groups of 30 pairs."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(100):
        own = agreement(answers(rng, 30, {"ann": 0.2, "ben": 0}), pairs=True)["raters"]["ann"]["alpha"]
        held += own["low"] <= 0.6 <= own["high"]
    assert held >= 90
