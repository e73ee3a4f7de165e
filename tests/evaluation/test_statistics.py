"""Intervals against scipy's, and against truths that are known: they cover as often as their docstrings say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from textcraftor.evaluation.statistics import (
    LEAST_SEEDS,
    crossed_difference,
    interval_text,
    paired_difference,
    seed_spread,
)

BOUNDS = ("low", "high")


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape)


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Student's t with 3 degrees of freedom, of variance 1."""
    return rng.standard_t(3, shape) / np.sqrt(3)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.exponential(size=shape) - 1


def tied(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """More than half exactly 0, the others in thirds, as letters change."""
    values = np.array([-1 / 3, 0, 1 / 3, 2 / 3, 1])
    chances = np.array([0.1, 0.55, 0.23, 0.07, 0.05])
    return rng.choice(values, shape, p=chances) - values @ chances


DRAWS = {"normal": normal, "heavy": heavy, "skewed": skewed, "tied": tied}


def coverage(kind: str, seeds: int, prompts: int, seed_sd: float, count: int = 400) -> float:
    """How often the interval holds the true difference of 0.1; one training seed: that over prompts alone."""
    rng, held = np.random.default_rng((sum(map(ord, kind)), seeds, prompts)), 0
    for _ in range(count):
        rise = 0.1 + DRAWS[kind](rng, (1, prompts, 1)) + seed_sd * heavy(rng, (seeds, 1, 1))
        if kind != "tied":
            rise = rise + 0.5 * DRAWS[kind](rng, (seeds, prompts, 1))
        zero = np.zeros_like(rise)
        change = crossed_difference(zero, rise) if seeds > 1 else paired_difference(zero[0], rise[0])
        held += change["low"] <= 0.1 <= change["high"]
    return held / count


@pytest.mark.parametrize("prompts", [8, 16, 112])
@pytest.mark.parametrize(
    ("kind", "least"), [("normal", [0.93, 0.93, 0.93]), ("heavy", [0.93, 0.93, 0.93]), ("tied", [0.91, 0.91, 0.93])]
)
def test_the_interval_of_one_run_covers_other_prompts(kind, least, prompts):
    assert coverage(kind, 1, prompts, 0) >= least[[8, 16, 112].index(prompts)]


@pytest.mark.parametrize("prompts", [8, 32, 112])
@pytest.mark.parametrize("seed_sd", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["normal", "heavy", "tied"])
def test_the_crossed_interval_covers_other_seeds_and_prompts(kind, seed_sd, prompts):
    """Heavy tails in seeds, prompts and what is left; also where seeds make no difference."""
    assert coverage(kind, LEAST_SEEDS, prompts, seed_sd) >= 0.92


def test_an_interval_over_prompts_alone_misses_what_another_seed_shows():
    """So it must not be what a claim about a method rests on: the same worlds, seeds only averaged."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        rise = 0.1 + normal(rng, (1, 64, 1)) + 0.3 * normal(rng, (LEAST_SEEDS, 1, 1))
        change = paired_difference(np.zeros((64, 1)), rise.mean(0))
        held += change["low"] <= 0.1 <= change["high"]
    assert held / 300 < 0.85


def test_one_run_is_the_paired_t_test():
    rng = np.random.default_rng(1)
    before = skewed(rng, (20, 3))
    after = before + heavy(rng, (20, 3))
    change = paired_difference(before, after)
    test = stats.ttest_rel(after.mean(1), before.mean(1))
    expected = test.confidence_interval(0.95)
    assert [change[bound] for bound in BOUNDS] == pytest.approx([expected.low, expected.high], rel=1e-12)
    assert change["mean"] == pytest.approx((after - before).mean())
    assert change["n"] == 20


@pytest.mark.parametrize("axis", [0, 1])
def test_the_crossed_interval_is_students_where_one_of_the_two_makes_no_difference(axis):
    """Only seeds differ, or only prompts: the paired t interval over what is left."""
    means = heavy(np.random.default_rng(2), (7,))
    rise = np.broadcast_to(np.expand_dims(means, 1 - axis), (7, 9) if axis == 0 else (9, 7))[..., None]
    change = crossed_difference(np.zeros_like(rise[:1]), rise)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert [change[bound] for bound in BOUNDS] == pytest.approx([expected.low, expected.high], rel=1e-9)
    assert change["n"] == rise.shape[1]


def test_the_crossed_width_holds_both_samples():
    """Banerjee's sum, from scipy's t intervals of the seeds' means and of the prompts' means."""
    rise = heavy(np.random.default_rng(3), (LEAST_SEEDS, 12, 2))
    change = crossed_difference(np.zeros((1, 12, 2)), rise)
    halves = [np.ptp(stats.ttest_1samp(rise.mean(axes), 0).confidence_interval(0.95)) / 2 for axes in ((1, 2), (0, 2))]
    assert change["high"] - change["mean"] == pytest.approx(np.hypot(*halves))
    assert change["mean"] == pytest.approx(rise.mean())


def test_fewer_training_seeds_than_a_claim_needs_have_no_interval():
    rise = normal(np.random.default_rng(4), (LEAST_SEEDS - 1, 12, 2))
    change = crossed_difference(np.zeros((1, 12, 2)), rise)
    assert change["mean"] == pytest.approx(rise.mean())
    assert interval_text(change, 3) == "none"


def test_pairing_makes_a_small_steady_gain_visible():
    rng = np.random.default_rng(1)
    before = rng.normal(0, 1, (40, 3))
    gain = paired_difference(before, before + 0.05 + rng.normal(0, 0.01, before.shape))
    assert gain["low"] > 0
    assert gain["mean"] == pytest.approx(0.05, abs=0.01)


def test_prompts_that_cannot_be_measured_are_dropped_and_not_counted():
    """As letters without a word; also where one training seed alone could not measure a prompt."""
    before = np.array([[0.0], [np.nan], [1.0], [2.0]])
    after = before + np.array([[1.0], [1.0], [2.0], [3.0]])
    change = paired_difference(before, after)
    assert (change["mean"], change["n"]) == (pytest.approx(2.0), 3)
    several = np.repeat(after[None], LEAST_SEEDS, 0)
    several[0, 2] = np.nan
    change = crossed_difference(before[None], several)
    assert (change["mean"], change["n"]) == (pytest.approx(2.0), 2)


def test_differences_of_rounding_are_ties():
    """Half of the prompts stay but for the last digits of float32, half rise."""
    before = np.full((4, 2), 20, np.float32)
    after = before + np.array([[1e-5], [-1e-5], [1.0], [2.0]], np.float32)
    assert paired_difference(before, after)["win_rate"] == 0.75
    still = paired_difference(before, before + np.array([[1e-5], [-1e-5], [0], [0]], np.float32))
    assert still["win_rate"] == 0.5
    assert interval_text(still, 3) == "none"


@pytest.mark.parametrize(
    ("before", "n"), [([[0.0, 1.0]], 1), ([[np.nan, 0.0], [2.0, 3.0]], 1), ([[0.1, 0.2], [1.3, 1.4]], 2)]
)
def test_one_prompt_and_constant_differences_have_no_interval(before, n):
    """However many pictures it has: prompts are what is sampled."""
    before = np.array(before)
    for change in (
        paired_difference(before, before + 0.5),
        crossed_difference(before[None], np.repeat(before[None] + 0.5, LEAST_SEEDS, 0)),
    ):
        assert change["mean"] == pytest.approx(0.5)
        assert (change["win_rate"], change["n"]) == (1.0, n)
        assert interval_text(change, 3) == "none"


def test_what_no_prompt_can_be_measured_by_has_no_figure():
    change = paired_difference(np.full((2, 1), np.nan), np.zeros((2, 1)))
    assert change.pop("n") == 0
    assert all(np.isnan(one) for one in change.values())


def test_the_spread_over_seeds_is_the_same_for_alike_and_for_unlike_prompts():
    """Prompts that differ move no picture of one prompt; scipy's pooled variance; NaN and single pictures are left
    out."""
    pictures = normal(np.random.default_rng(5), (6, 3))
    unlike = pictures + 100 * np.arange(6)[:, None]
    assert seed_spread(pictures) == pytest.approx(np.sqrt(pictures.var(1, ddof=1).mean()))
    assert seed_spread(unlike) == pytest.approx(seed_spread(pictures))
    assert seed_spread(pictures[:2], unlike[2:]) == pytest.approx(seed_spread(pictures))
    assert seed_spread(pictures, np.array([[5.0], [9.0]])) == pytest.approx(seed_spread(pictures))
    assert seed_spread(np.array([[0.0, 2.0, np.nan], [np.nan] * 3])) == pytest.approx(np.sqrt(2))
    assert np.isnan(seed_spread(np.zeros((4, 1))))
