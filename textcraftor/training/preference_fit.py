"""Scores from choices between two pictures, and how well they foresee choices on prompts that they did not learn from.

P(first wins) = sigmoid(score(first) - score(second)) (Bradley and Terry 1952, Biometrika 39); a tie is half a win for
each. Prompts, not choices, are held out: choices on one prompt resemble each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import expit

from textcraftor.evaluation.statistics import LEVEL, paired_difference

PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # of squared weights, to choose from
INNER_FOLDS = 5  # by which the penalty is chosen
CURVE = (25, 50, 100, 200, 400, 800, 1600)  # numbers of choices to learn from
TIE, CHANCE = 0.5, 0.5


@dataclass(frozen=True)
class Choices:
    """Choices between two pictures.

    Args:
        first, second: rows of pictures.
        outcomes: of the first: 1 won, 0 lost, .5 tied.
        prompts: a number for each choice's prompt.
    """

    first: Int[np.ndarray, " choices"]
    second: Int[np.ndarray, " choices"]
    outcomes: Float[np.ndarray, " choices"]
    prompts: Int[np.ndarray, " choices"]

    def __len__(self) -> int:
        return len(self.outcomes)

    def __getitem__(self, rows: np.ndarray) -> Choices:
        return Choices(self.first[rows], self.second[rows], self.outcomes[rows], self.prompts[rows])

    def margins(self, scores: Float[np.ndarray, " pictures"]) -> Float[np.ndarray, " choices"]:
        """By how much each first picture's score is above the second's."""
        return scores[self.first] - scores[self.second]


Learn = Callable[[Choices], np.ndarray]  # learns from choices, and scores every picture: (pictures,)


def linear_weights(
    differences: Float[np.ndarray, "choices features"],
    outcomes: Float[np.ndarray, " choices"],
    penalty: float,
    start: Float[np.ndarray, " features"] | None = None,
) -> Float[np.ndarray, " features"]:
    """The weights w that minimise the mean cross entropy of sigmoid(differences @ w) plus penalty / 2 |w|^2: logistic
    regression with a ridge (le Cessie and van Houwelingen 1992), which has one minimum.

    Args:
        differences: of the two pictures' features.
        start: where the search begins.
    """

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = differences @ weights
        value = -log_likelihood(logits, outcomes).mean() + penalty / 2 * weights @ weights
        return float(value), differences.T @ (expit(logits) - outcomes) / len(outcomes) + penalty * weights

    begin = np.zeros(differences.shape[1]) if start is None else start
    return minimize(loss, begin, jac=True, method="L-BFGS-B").x


def log_likelihood(
    logits: Float[np.ndarray, " choices"], outcomes: Float[np.ndarray, " choices"]
) -> Float[np.ndarray, " choices"]:
    """Of each choice, in nats, at most 0."""
    return outcomes * logits - np.logaddexp(0, logits)


def fit_linear(
    features: Float[np.ndarray, "pictures features"], choices: Choices, seed: int
) -> Float[np.ndarray, " features"]:
    """`linear_weights` with the penalty under which choices on held-out prompts are likeliest."""
    differences = features[choices.first] - features[choices.second]
    basis = np.linalg.qr(differences.T)[0]  # the best weights are a sum of differences: with few, a small problem
    reduced = differences @ basis
    return basis @ linear_weights(reduced, choices.outcomes, chosen_penalty(reduced, choices, seed))


def chosen_penalty(differences: Float[np.ndarray, "choices features"], choices: Choices, seed: int) -> float:
    """The penalty under which choices on held-out prompts are likeliest; of a single prompt the strongest."""
    likelihoods = np.zeros(len(PENALTIES))
    for learned, held_out in folds(choices, INNER_FOLDS, seed):
        weights = None
        for place, penalty in enumerate(PENALTIES):
            weights = linear_weights(differences[learned], choices.outcomes[learned], penalty, weights)
            likelihoods[place] += log_likelihood(differences[held_out] @ weights, choices.outcomes[held_out]).sum()
    return PENALTIES[int(np.argmax(likelihoods))]


def folds(choices: Choices, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to learn from and rows to test on; all choices on one prompt are on the same side. None of one prompt."""
    prompts = np.random.default_rng((seed, 1)).permutation(np.unique(choices.prompts))
    for part in np.array_split(prompts, min(count, len(prompts))) if len(prompts) > 1 else ():
        held_out = np.isin(choices.prompts, part)
        yield np.flatnonzero(~held_out), np.flatnonzero(held_out)


def agreement(scores: Float[np.ndarray, " pictures"], choices: Choices) -> Float[np.ndarray, " choices"]:
    """1 where the scores choose alike, 0 where they do not, .5 where they are equal; NaN for ties, which no choice
    agrees with."""
    margins = choices.margins(scores)
    agrees = np.where(margins == 0, 0.5, (margins > 0) == (choices.outcomes > TIE))
    return np.where(choices.outcomes == TIE, np.nan, agrees)


def cross_validated(
    learn: Learn, choices: Choices, count: int, seed: int, most: int | None = None
) -> Float[np.ndarray, " choices"]:
    """`agreement` of each choice with scores that learned from choices on other prompts.

    Args:
        count: of folds.
        most: choices to learn from, drawn anew for each fold; None: all.
    """
    agrees = np.full(len(choices), np.nan)
    for number, (learned, held_out) in enumerate(folds(choices, count, seed)):
        if most is not None:
            learned = np.sort(np.random.default_rng((seed, number, most)).permutation(learned)[:most])
        agrees[held_out] = agreement(learn(choices[learned]), choices[held_out])
    return agrees


def accuracy(agrees: Float[np.ndarray, " choices"], choices: Choices) -> dict[str, float]:
    """The mean agreement of choices that are no ties, a prompt's choices averaged first, with Student's t 95 % interval
    over prompts, within [0, 1].

    Returns:
        mean, low, high, and `n`, the prompts; bounds are NaN where all prompts are alike.
    """
    own = [agrees[(choices.prompts == prompt) & ~np.isnan(agrees)] for prompt in np.unique(choices.prompts)]
    means = np.array([one.mean() for one in own if len(one)])[:, None]
    estimate = paired_difference(np.zeros_like(means), means)
    return {
        key: estimate[key] if key == "n" else float(np.clip(estimate[key], 0, 1))
        for key in ("mean", "low", "high", "n")
    }


def beats_chance(known: dict[str, float]) -> bool:
    """Whether an accuracy's interval is above one half; where all prompts agree alike, which has none, whether guesses
    would hardly agree on that many."""
    if not np.isnan(known["low"]):
        return known["low"] > CHANCE
    return known["mean"] == 1 and CHANCE ** known["n"] < (1 - LEVEL) / 2


def learning_curve(learn: Learn, choices: Choices, count: int, draws: int, seed: int) -> list[dict[str, float]]:
    """The accuracy by how many choices were learned from.

    Args:
        count: of folds.
        draws: of folds and of so many choices, over which agreement is averaged; 0: no curve.

    Returns:
        `choices` and what `accuracy` returns, for numbers below what a fold learns from.
    """
    points = []
    for most in CURVE if draws else ():
        if most < (1 - 1 / count) * len(choices):
            agrees = [cross_validated(learn, choices, count, seed + draw, most) for draw in range(draws)]
            points.append({"choices": most, **accuracy(np.mean(agrees, 0), choices)})
    return points
