"""Measures against values that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textcraftor.evaluation.evaluate import best_of, diversity


def test_diversity_is_the_root_mean_square_between_pictures():
    black = torch.zeros(3, 8, 8, dtype=torch.uint8)
    gray = torch.full_like(black, 51)
    assert diversity(torch.stack([black, black])) == 0
    assert diversity(torch.stack([black, gray])) == pytest.approx(0.2)
    assert diversity(torch.stack([black, gray, gray])) == pytest.approx(0.4 / 3)


def test_the_best_of_several_pictures_is_chosen_by_the_total_for_every_measure():
    """A prompt without a word has no letters; what is measured over several pictures has no best of them."""
    measures = {
        "total": np.array([[1.0, 3.0], [5.0, 4.0]]),
        "judge/taste": np.array([[0.2, 0.4], [0.6, 0.8]]),
        "judge/letters": np.array([[0.5, 1.0], [np.nan, np.nan]]),
        "diversity": np.ones((2, 2)),
    }
    assert best_of(measures) == pytest.approx({"total": 4.0, "judge/taste": 0.5, "judge/letters": 1.0})
    assert best_of({name: values[:, :1] for name, values in measures.items()}) == {}
