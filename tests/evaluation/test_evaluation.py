"""Measures against values that are known."""

from __future__ import annotations

import pytest
import torch

from textcraftor.evaluation.evaluate import diversity


def test_diversity_is_the_root_mean_square_between_pictures():
    black = torch.zeros(3, 8, 8, dtype=torch.uint8)
    gray = torch.full_like(black, 51)
    assert diversity(torch.stack([black, black])) == 0
    assert diversity(torch.stack([black, gray])) == pytest.approx(0.2)
    assert diversity(torch.stack([black, gray, gray])) == pytest.approx(0.4 / 3)
