"""Scores from choices between two pictures: P(first wins) = sigmoid(s(first) - s(second)) (Bradley & Terry 1952), where a
tie counts as half a win for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from textcraftor.evaluation.statistics import paired_difference

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of squared weights, to choose from
CURVE = (25, 50, 100, 200, 400, 800, 1600)  # numbers of votes to learn from
DRAWS = 5  # of so many votes, for each point of the curve
TIE = 0.5


@dataclass(frozen=True)
class Votes:
    """Choices between two pictures.

    Args:
        first, second: (votes,), rows of pictures.
        outcomes: (votes,), of the first: 1 won, 0 lost, .5 tied.
        prompts: (votes,), the number of each one's prompt: what folds keep together.
    """

    first: np.ndarray
    second: np.ndarray
    outcomes: np.ndarray
    prompts: np.ndarray

    def __len__(self) -> int:
        return len(self.outcomes)

    def __getitem__(self, rows: np.ndarray) -> Votes:
        return Votes(self.first[rows], self.second[rows], self.outcomes[rows], self.prompts[rows])


Scores = np.ndarray  # (pictures,)
Fit = Callable[[Votes], Scores]  # learns from votes, and scores every picture


def linear_scores(features: np.ndarray, votes: Votes, penalty: float) -> np.ndarray:
    """Weights (features,) of the scores `features @ weights` under which the votes are likeliest, with a penalty on
    their squares: a convex problem.

    Args:
        features: (pictures, features).
    """
    differences = features[votes.first] - features[votes.second]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = differences @ weights
        value = np.logaddexp(0, logits).mean() - (votes.outcomes * logits).mean() + penalty / 2 * weights @ weights
        gradient = differences.T @ (expit(logits) - votes.outcomes) / len(votes) + penalty * weights
        return float(value), gradient

    return minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B").x


def fit_linear(features: np.ndarray, votes: Votes, seed: int = 0) -> np.ndarray:
    """`linear_scores` with the penalty under which votes on held-out prompts are likeliest."""
    likelihoods = []
    for penalty in PENALTIES:
        parts = [
            log_likelihood(features @ linear_scores(features, votes[learned], penalty), votes[held_out])
            for learned, held_out in folds(votes, 5, seed)
        ]
        likelihoods.append(np.mean(np.concatenate(parts)) if parts else -penalty)
    return linear_scores(features, votes, PENALTIES[int(np.argmax(likelihoods))])


def log_likelihood(scores: Scores, votes: Votes) -> np.ndarray:
    """Of each vote, (votes,)."""
    logits = scores[votes.first] - scores[votes.second]
    return votes.outcomes * logits - np.logaddexp(0, logits)


def folds(votes: Votes, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to learn from and rows to test on; all votes on one prompt are on the same side."""
    prompts = np.random.default_rng((seed, 1)).permutation(np.unique(votes.prompts))
    for part in np.array_split(prompts, min(count, len(prompts))) if len(prompts) > 1 else ():
        held_out = np.isin(votes.prompts, part)
        yield np.flatnonzero(~held_out), np.flatnonzero(held_out)


def agreement(scores: Scores, votes: Votes) -> np.ndarray:
    """Of each vote whether the scores choose alike, (votes,); NaN for ties, which no choice agrees with."""
    margin = scores[votes.first] - scores[votes.second]
    agrees = np.where(margin == 0, 0.5, (margin > 0) == (votes.outcomes > TIE))
    return np.where(votes.outcomes == TIE, np.nan, agrees)


def cross_validated(fit: Fit, votes: Votes, count: int, seed: int, most: int | None = None) -> np.ndarray:
    """`agreement` of each vote with scores that learned from votes on other prompts.

    Args:
        count: of folds.
        most: votes to learn from, drawn anew for each fold; None: all.
    """
    agrees = np.full(len(votes), np.nan)
    for number, (learned, held_out) in enumerate(folds(votes, count, seed)):
        if most is not None:
            learned = np.random.default_rng((seed, number, most)).permutation(learned)[:most]
        agrees[held_out] = agreement(fit(votes[learned]), votes[held_out])
    return agrees


def accuracy(agrees: np.ndarray, votes: Votes) -> dict[str, float]:
    """The mean agreement of votes that are no ties, with Student's t 95 % interval over prompts."""
    means = [np.nanmean(own) for own in by_prompt(agrees, votes) if not np.isnan(own).all()]
    rows = np.array(means, dtype=float)[:, None]
    return paired_difference(np.zeros_like(rows), rows)


def by_prompt(values: np.ndarray, votes: Votes) -> list[np.ndarray]:
    return [values[votes.prompts == prompt] for prompt in np.unique(votes.prompts)]


def learning_curve(fit: Fit, votes: Votes, count: int, seed: int) -> list[tuple[int, dict[str, float]]]:
    """The accuracy by how many votes were learned from, means over several draws of them."""
    share = 1 - 1 / count  # of all votes, that a fold learns from
    points: list[tuple[int, dict[str, float]]] = []
    for most in [one for one in CURVE if one < share * len(votes)]:
        draws = [cross_validated(fit, votes, count, seed + draw, most) for draw in range(DRAWS)]
        points.append((most, accuracy(np.nanmean(np.stack(draws), 0), votes)))
    return points
