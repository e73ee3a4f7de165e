"""Paired statistics and measures against values that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textcraftor.evaluation.evaluate import diversity
from textcraftor.evaluation.statistics import interval_text, paired_difference


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says():
    """200 experiments of known mean .1: a 95 % interval must hold it in most of them."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        before = rng.normal(0, 1, (40, 3))
        after = before + 0.1 + rng.normal(0, 0.3, (40, 3))
        interval = paired_difference(before, after)
        held += interval["low"] <= 0.1 <= interval["high"]
    assert 0.88 <= held / 200 <= 1.0


def test_pairing_makes_a_small_steady_gain_visible():
    rng = np.random.default_rng(1)
    before = rng.normal(0, 1, (40, 3))
    gain = paired_difference(before, before + 0.05 + rng.normal(0, 0.01, before.shape))
    assert gain["low"] > 0
    assert gain["mean"] == pytest.approx(0.05, abs=0.01)


def test_prompts_that_cannot_be_measured_are_left_out():
    before = np.array([[0.0], [np.nan], [1.0], [2.0]])
    assert paired_difference(before, before + np.array([[1.0], [1.0], [2.0], [3.0]]))["mean"] == pytest.approx(2.0)


def test_no_difference_is_no_difference():
    same = np.arange(6.0).reshape(3, 2)
    assert paired_difference(same, same) == {"mean": 0.0, "low": 0.0, "high": 0.0, "win_rate": 0.5}


@pytest.mark.parametrize("before", [[[0.0, 1.0]], [[np.nan, 0.0], [2.0, 3.0]]])
def test_one_prompt_has_a_difference_and_no_interval(before):
    """However many seeds it has: prompts are what is resampled. Two that agree have one of no width."""
    before = np.array(before)
    change = paired_difference(before, before + 0.5)
    assert (change["mean"], change["win_rate"]) == (0.5, 1.0)
    assert np.isnan([change["low"], change["high"]]).all()
    assert interval_text(change, 3) == "none"
    both = paired_difference(np.zeros((2, 1)), np.full((2, 1), 0.5))
    assert interval_text(both, 3) == "[+0.500, +0.500]"


def test_what_no_prompt_can_be_measured_by_has_no_figure():
    assert all(np.isnan(one) for one in paired_difference(np.full((2, 1), np.nan), np.zeros((2, 1))).values())


def test_diversity_is_the_root_mean_square_between_pictures():
    black = torch.zeros(3, 8, 8, dtype=torch.uint8)
    gray = torch.full_like(black, 51)
    assert diversity(torch.stack([black, black])) == 0
    assert diversity(torch.stack([black, gray])) == pytest.approx(0.2)
    assert diversity(torch.stack([black, gray, gray])) == pytest.approx(0.4 / 3)
