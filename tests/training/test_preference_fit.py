"""A taste is recovered from choices, and what is said of how well it foresees further choices holds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from textcraftor.training.preference_fit import (
    Choices,
    accuracy,
    agreement,
    beats_chance,
    cross_validated,
    fit_linear,
    folds,
    learning_curve,
    linear_weights,
)

TASTE = np.array([3.0, -2.0, 1.0, 0.0])
NO_TASTE = np.zeros(4)


def simulated(rng: np.random.Generator, taste: np.ndarray, count: int, prompts: int) -> tuple[np.ndarray, Choices]:
    """Features of two pictures for each choice, and what people with this taste choose."""
    features = rng.normal(size=(2 * count, len(taste)))
    first = np.arange(0, 2 * count, 2)
    wins = rng.random(count) < expit((features[first] - features[first + 1]) @ taste)
    return features, Choices(first, first + 1, wins.astype(float), rng.integers(prompts, size=count))


def fixed(features: np.ndarray):
    """Learns with one penalty: the intervals are under test here, not the search for it."""

    def learn(choices: Choices) -> np.ndarray:
        differences = features[choices.first] - features[choices.second]
        return features @ linear_weights(differences, choices.outcomes, 1e-2)

    return learn


def true_accuracy(weights: np.ndarray, taste: np.ndarray) -> float:
    """How often scores with these weights foresee a new choice."""
    differences = np.random.default_rng(9).normal(size=(2000, len(taste))) * np.sqrt(2)
    first_wins = expit(differences @ taste)
    return float(np.where(differences @ weights > 0, first_wins, 1 - first_wins).mean())


def test_strengths_satisfy_the_likelihood_equations_of_bradley_and_terry():
    """Each model is expected to win as often as it did (Bradley and Terry 1952); a tie is half a win."""
    first, second = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([1, 1, 2, 2, 2, 0, 1])
    outcomes = np.array([1, 0, 1, 1, 0.5, 0, 1.0])
    differences = np.eye(3)[first] - np.eye(3)[second]
    expected = expit(differences @ linear_weights(differences, outcomes, 1e-9))
    assert differences.T @ expected == pytest.approx(differences.T @ outcomes, abs=1e-3)


def test_a_known_taste_is_recovered():
    """With many more features than the taste uses, and more than there are choices."""
    rng = np.random.default_rng(0)
    taste = np.concatenate([TASTE, np.zeros(56)])
    features, choices = simulated(rng, taste, 400, 100)
    scores = features @ fit_linear(features, choices, 0)
    assert np.corrcoef(scores, features @ taste)[0, 1] > 0.9
    few = choices[np.arange(40)]
    assert np.corrcoef(features @ fit_linear(features, few, 0), features @ taste)[0, 1] > 0.4


def test_the_interval_covers_the_truth_and_chance_is_seldom_taken_for_taste():
    """In repeated experiments of 80 choices; the truth is that of the scores which each fold learned."""
    covered, lucky, experiments = 0, 0, 150
    for seed in range(experiments):
        rng = np.random.default_rng(seed)
        features, choices = simulated(rng, TASTE / 2, 80, 40)
        known = accuracy(cross_validated(fixed(features), choices, 5, seed), choices)
        learned = [
            np.linalg.lstsq(features, fixed(features)(choices[rows]), rcond=None)[0]
            for rows, _ in folds(choices, 5, seed)
        ]
        truth = np.mean([true_accuracy(weights, TASTE / 2) for weights in learned])
        covered += known["low"] <= truth <= known["high"]
        features, guesses = simulated(rng, NO_TASTE, 80, 40)
        lucky += beats_chance(accuracy(cross_validated(fixed(features), guesses, 5, seed), guesses))
    assert covered / experiments >= 0.87
    assert lucky / experiments <= 0.06


def test_choices_on_one_prompt_are_held_out_together_and_each_once():
    _, choices = simulated(np.random.default_rng(0), TASTE, 50, 12)
    seen = []
    for learned, held_out in folds(choices, 5, 0):
        assert not {*choices.prompts[learned]} & {*choices.prompts[held_out]}
        assert len(learned) + len(held_out) == 50
        seen += [*held_out]
    assert sorted(seen) == list(range(50))
    assert not list(folds(choices[choices.prompts == 3], 5, 0))


def test_ties_agree_with_nothing_and_perfect_agreement_is_no_luck():
    choices = Choices(np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([1, 0.5, 1]), np.array([0, 0, 1]))
    assert agreement(np.array([2.0, 1.0, 1.0]), choices) == pytest.approx([1, np.nan, 0.5], nan_ok=True)
    alike = {"mean": 1.0, "low": np.nan, "high": np.nan}
    assert beats_chance({**alike, "n": 6})
    assert not beats_chance({**alike, "n": 5})
    assert not beats_chance({**alike, "mean": 0.5, "n": 50})


def test_more_choices_are_foreseen_better():
    features, choices = simulated(np.random.default_rng(1), np.tile(TASTE, 4), 300, 100)
    curve = learning_curve(fixed(features), choices, 5, 2, 0)
    assert [point["choices"] for point in curve] == [25, 50, 100, 200]
    assert curve[-1]["mean"] > curve[0]["mean"] + 0.05
    assert learning_curve(fixed(features), choices, 5, 0, 0) == []
