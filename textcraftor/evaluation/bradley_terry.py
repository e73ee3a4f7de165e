"""Strengths of models from votes on which of two is better: the model of Bradley and Terry (1952, Biometrika 39).

The chance that i is preferred to j is sigmoid(strength_i - strength_j): a logistic regression on which two models were
shown. A tie is half a win for each, so what is fitted is the expected score, as in Elo's ratings and in Chatbot Arena
(arXiv 2403.04132).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from textcraftor.evaluation.statistics import LEVEL

ELO = 400 / math.log(10)  # points of a strength of 1: 400 points are odds of 10 to 1
MOST_STEPS, LARGEST_STEP, TOLERANCE = 100, 2.0, 1e-8
LEAST_SAMPLES = 50  # bootstrap samples that an interval needs
PRIOR = (
    0.25  # wins of each model over each other one that a choice begins with, so that every strength is known a little
)


@dataclass(frozen=True)
class Votes:
    """Votes on pairs of models.

    Args:
        models: their names.
        first, second: the models of each vote, by their places in `models`.
        score: of the first: 1, 0, or 1/2 for a tie.
        prompt: a number for each vote's prompt.
    """

    models: tuple[str, ...]
    first: Int[np.ndarray, " votes"]
    second: Int[np.ndarray, " votes"]
    score: Float[np.ndarray, " votes"]
    prompt: Int[np.ndarray, " votes"]

    @classmethod
    def of(cls, models: Sequence[str], rows: Iterable[tuple[str, str, float, str]]) -> Votes:
        """Votes from (first model, second model, score of the first, prompt)."""
        places, prompts = {name: place for place, name in enumerate(models)}, dict[str, int]()
        table = [(places[a], places[b], score, prompts.setdefault(text, len(prompts))) for a, b, score, text in rows]
        first, second, scores, prompt = np.array(table, float).reshape(-1, 4).T
        return cls(tuple(models), first.astype(int), second.astype(int), scores, prompt.astype(int))

    def wins(self) -> Float[np.ndarray, "models models"]:
        """How often the model of a row was preferred to that of a column."""
        return self._wins_by(np.zeros(len(self.score), int))(np.ones(1))

    def resampled(
        self, groups: Int[np.ndarray, " votes"], count: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "samples models models"]:
        """The wins in bootstrap samples of groups of votes, drawn with replacement (Efron 1979)."""
        wins, size = self._wins_by(groups), int(groups.max()) + 1
        draws = (rng.integers(size, size=size) for _ in range(count))
        return np.stack([wins(np.bincount(drawn, minlength=size)) for drawn in draws])

    def _wins_by(self, groups: Int[np.ndarray, " votes"]):
        """A function from the weights of groups of votes to the wins."""
        count = len(self.models)
        cells = np.concatenate([self.first * count + self.second, self.second * count + self.first])
        scores, rows = np.concatenate([self.score, 1 - self.score]), np.tile(groups, 2)
        table = csr_array((scores, (cells, rows)), shape=(count**2, int(groups.max(initial=0)) + 1))
        return lambda weights: (table @ weights).reshape(count, count)


def fit(
    wins: Float[np.ndarray, "*samples models models"],
) -> tuple[Float[np.ndarray, "*samples models"], Float[np.ndarray, "*samples models models"]]:
    """Strengths, of mean 0, and the variance of the difference of each two of them.

    The likelihood is penalised by the root of its information's determinant (Firth 1993, Biometrika 80), which keeps
    strengths finite where a model was never or always chosen, and takes away most of the bias of few votes; Turner and
    Firth's BradleyTerry2 (2012, JSS 48(9)) calls it `br`. Two models get the odds (wins + 1/2) : (losses + 1/2).

    Args:
        wins: of the row's model over the column's, for each sample; every model must be linked to every other one by
            votes, see `linked`.
    """
    count, shown = wins.shape[-1], wins + wins.swapaxes(-1, -2)
    strength = np.zeros(wins.shape[:-1])
    for _ in range(MOST_STEPS):
        chance = expit(strength[..., :, None] - strength[..., None, :])
        weight = shown * chance * (1 - chance)
        covariance = np.linalg.inv(_laplacian(weight) + 1 / count)
        variance = _of_differences(covariance)
        score = (wins - shown * chance + weight * variance * (0.5 - chance)).sum(-1)
        step = (covariance @ score[..., None])[..., 0].clip(-LARGEST_STEP, LARGEST_STEP)
        strength = strength + step
        if np.abs(step).max(initial=0) < TOLERANCE:
            break
    return strength - strength.mean(-1, keepdims=True), variance


def _laplacian(weight: np.ndarray) -> np.ndarray:
    """The information of strengths where each two models have this weight: each row's sum on the diagonal."""
    return weight.sum(-1)[..., None] * np.eye(weight.shape[-1]) - weight


def _of_differences(covariance: np.ndarray) -> np.ndarray:
    own = np.diagonal(covariance, axis1=-2, axis2=-1)
    return own[..., :, None] + own[..., None, :] - 2 * covariance


def linked(wins: Float[np.ndarray, "*samples models models"]) -> Bool[np.ndarray, "*samples"]:
    """Whether votes link every model to every other one, directly or through others."""
    information = _laplacian(wins + wins.swapaxes(-1, -2))
    return np.linalg.matrix_rank(information, hermitian=True) == wins.shape[-1] - 1


def information_gain(wins: Float[np.ndarray, "models models"]) -> Float[np.ndarray, "models models"]:
    """By how much one more vote on each two models would reduce what is unknown of all strengths, in nats.

    Half the rise of the information's log-determinant (D-optimality; Grasshoff and Schwabe 2008, Statistics and
    Computing 18, for this model): large for models of like strength that have met seldom.
    """
    strength, variance = fit(wins + PRIOR * (1 - np.eye(len(wins))))
    chance = expit(strength[:, None] - strength[None])
    return np.log1p(chance * (1 - chance) * variance) / 2


def compared(votes: Votes, samples: int, seed: int) -> dict[str, Any]:
    """Strengths on Elo's scale, of mean 0, and differences of each two models, with bootstrap 95 % intervals.

    Intervals over votes say what other votes on these prompts and like them would give, each vote for itself; those
    over prompts draw prompts with all their votes, as votes on one prompt are alike, and are what holds for other
    prompts. How often they hold the true strength of one of three models, over 250 simulated studies in which each
    prompt has each pair once for one rater, or once for each of six:

        prompts x raters                    8 x 1  16 x 1  32 x 1  112 x 1  8 x 6  16 x 6  32 x 6  112 x 6
        models differ alike on all prompts
            over votes                      .94    .93     .94     .94      .94    .93     .94     .95
            over prompts                    .89    .91     .93     .94      .87    .90     .93     .95
        and by 1.5 more or less on each
            over votes                      .91    .90     .93     .91      .65    .64     .62     .63
            over prompts                    .90    .91     .95     .94      .90    .95     .92     .94

    A strength has no interval (NaN) where the votes do not bound it: where all votes between two groups of
    models went one way (Ford 1957, American Mathematical Monthly 64), and over a single prompt.

    Returns:
        `models`: by name `strength` (log odds), `elo`, `over_votes` and `over_prompts` {low, high} of `elo`.
        `pairs`: for each two models `first`, `second`, `votes`, `wins`, `ties`, `losses` (of the first), `share` (ties
        counted half; NaN without votes), and of their difference `elo`, `over_votes`, `over_prompts`.
        `wins`: of each model over each other one, ties counted half.
        `apart`: models that no votes link to the others; they are in none of these.
    """
    wins = votes.wins()
    groups = connected_components(wins + wins.T > 0, directed=False)[1]
    kept = np.flatnonzero(groups == np.bincount(groups).argmax())
    inside = wins[np.ix_(kept, kept)]
    strength, bounded = fit(inside)[0], connected_components(inside > 0, directed=True, connection="strong")[1]
    draws = {}
    for name, group in {"over_votes": np.arange(len(votes.score)), "over_prompts": votes.prompt}.items():
        drawn = votes.resampled(group, samples, np.random.default_rng(seed))[:, kept[:, None], kept]
        drawn = fit(drawn[linked(drawn)])[0] if group.max() > 0 else np.zeros((0, len(kept)))
        draws[name] = drawn * ELO

    def figures(value: float, weights: np.ndarray, holds: bool) -> dict[str, Any]:
        return {"elo": value * ELO, **{name: _interval(drawn @ weights, holds) for name, drawn in draws.items()}}

    unit, all_bounded = np.eye(len(kept)), bool((bounded == bounded[0]).all())
    models = {
        votes.models[place]: {"strength": float(strength[i]), **figures(float(strength[i]), unit[i], all_bounded)}
        for i, place in enumerate(kept)
    }
    pairs = [
        _counts(votes, kept[i], kept[j])
        | figures(float(strength[i] - strength[j]), unit[i] - unit[j], bool(bounded[i] == bounded[j]))
        for i in range(len(kept))
        for j in range(i + 1, len(kept))
    ]
    table = {one: dict(zip(models, map(float, row), strict=True)) for one, row in zip(models, inside, strict=True)}
    return {
        "models": models,
        "pairs": pairs,
        "wins": table,
        "apart": [name for name in votes.models if name not in models],
    }


def _interval(drawn: Float[np.ndarray, " samples"], holds: bool) -> dict[str, float]:
    """The middle 95 % of bootstrap values; NaN where there are none or they bound nothing."""
    if not holds or len(drawn) < LEAST_SAMPLES:
        return {"low": math.nan, "high": math.nan}
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high)}


def _counts(votes: Votes, first: int, second: int) -> dict[str, Any]:
    """The votes on two models, seen from the first."""
    straight = (votes.first == first) & (votes.second == second)
    turned = (votes.first == second) & (votes.second == first)
    score = np.concatenate([votes.score[straight], 1 - votes.score[turned]])
    wins, ties, losses = (int((score == value).sum()) for value in (1, 0.5, 0))
    share = float(score.mean()) if len(score) else math.nan
    names = {"first": votes.models[first], "second": votes.models[second], "votes": len(score)}
    return names | {"wins": wins, "ties": ties, "losses": losses, "share": share}
