"""Strengths against scipy's maximum and against known ones; intervals that cover as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from textcraftor.evaluation.bradley_terry import ELO, PRIOR, Votes, compared, fit, information_gain

MODELS = ("a", "b", "c")
TRUTH = np.array([-0.5, 0.0, 0.5])


def penalised(strength: np.ndarray, wins: np.ndarray) -> float:
    """Minus Firth's log-likelihood, written out."""
    chance, count = expit(strength[:, None] - strength), len(wins)
    weight = (wins + wins.T) * chance * (1 - chance)
    information = np.diag(weight.sum(1)) - weight + 1 / count
    return -(wins * np.log(chance)).sum() - np.linalg.slogdet(information)[1] / 2 + strength.mean() ** 2


def simulated(rng: np.random.Generator, prompts: int, raters: int, spread: float, ties: float = 0.2) -> Votes:
    """Each prompt's pairs, each seen by some raters.

    Args:
        spread: standard deviation of how much stronger a model is on one prompt than on others.
        ties: their share of even chances; the expected score stays sigmoid of the difference.
    """
    strength = TRUTH + spread * rng.normal(size=(prompts, 3))
    first, second = np.array([(0, 1), (0, 2), (2, 1)] * raters).T
    chance = expit(strength[:, first] - strength[:, second])
    tie, drawn = ties * 2 * np.minimum(chance, 1 - chance), rng.random(chance.shape)
    score = np.where(drawn < chance - tie / 2, 1.0, np.where(drawn < chance + tie / 2, 0.5, 0.0))
    prompt = np.repeat(np.arange(prompts), len(first))
    return Votes(MODELS, np.tile(first, prompts), np.tile(second, prompts), score.ravel(), prompt)


def test_strengths_are_the_maximum_of_the_penalised_likelihood():
    """As scipy finds it, one by one and together; two models have the odds (wins + 1/2) : (losses + 1/2)."""
    wins = np.random.default_rng(0).integers(0, 6, (5, 4, 4)) * (1.0 - np.eye(4)) + 0.5 * (1 - np.eye(4))
    strength, _ = fit(wins)
    for one, alone in zip(strength, wins, strict=True):
        best = minimize(penalised, np.zeros(4), args=(alone,), method="BFGS", options={"gtol": 1e-7}).x
        np.testing.assert_allclose(one, best, atol=1e-4)
        np.testing.assert_allclose(fit(alone)[0], one, atol=1e-9)
    pair = fit(np.array([[0, 10.0], [0, 0]]))[0]
    assert pair[0] - pair[1] == pytest.approx(np.log(10.5 / 0.5))


def test_known_strengths_are_recovered_from_votes_with_ties():
    votes = simulated(np.random.default_rng(1), prompts=2000, raters=2, spread=0)
    assert 0.1 < (votes.score == 0.5).mean() < 0.3, "without ties this proves less"
    result = compared(votes, 100, 0)
    assert [result["models"][name]["elo"] for name in MODELS] == pytest.approx([*(TRUTH * ELO)], abs=8)
    one = next(pair for pair in result["pairs"] if (pair["first"], pair["second"]) == ("b", "c"))
    assert one["wins"] + one["ties"] + one["losses"] == one["votes"] == 4000
    assert one["share"] == pytest.approx((one["wins"] + one["ties"] / 2) / 4000)
    assert result["wins"]["b"]["c"] == one["wins"] + one["ties"] / 2


@pytest.mark.parametrize(("spread", "raters"), [(0.0, 1), (1.5, 6)])
def test_intervals_over_prompts_cover_and_those_over_votes_only_where_votes_are_apart(spread, raters):
    """40 simulated studies; where models differ from prompt to prompt, six votes on one prompt are not six prompts."""
    rng, held, studies = np.random.default_rng(2), {"over_votes": 0, "over_prompts": 0}, 40
    true = fit(simulated(rng, 20000, 1, spread).wins())[0] * ELO
    for _ in range(studies):
        models = compared(simulated(rng, 40, raters, spread), 120, 0)["models"]
        for name, truth in zip(MODELS, true, strict=True):
            for kind in held:
                held[kind] += models[name][kind]["low"] <= truth <= models[name][kind]["high"]
    covered = {kind: count / studies / 3 for kind, count in held.items()}
    assert covered["over_prompts"] >= 0.9
    assert covered["over_votes"] >= 0.9 if spread == 0 else covered["over_votes"] < 0.8


def test_a_model_that_was_never_chosen_has_a_strength_and_no_interval():
    """The votes bound it on one side alone; the others are bounded against each other."""
    rows = [("a", "b", float(n % 3 > 0), str(n)) for n in range(12)]
    rows += [(one, "c", 1.0, str(n)) for n in range(12) for one in "ab"]
    result = compared(Votes.of(MODELS, rows), 100, 0)
    assert -2000 < result["models"]["c"]["elo"] < -200
    assert np.isnan(result["models"]["c"]["over_prompts"]["low"])
    pairs = {(pair["first"], pair["second"]): pair for pair in result["pairs"]}
    assert np.isnan(pairs["a", "c"]["over_votes"]["high"])
    assert pairs["a", "b"]["over_votes"]["low"] < pairs["a", "b"]["elo"] < pairs["a", "b"]["over_votes"]["high"]


def test_pairs_without_votes_are_known_through_others_and_models_without_any_are_apart():
    rows = [("a", "b", float(n % 3 > 0), str(n)) for n in range(30)]
    rows += [("b", "c", float(n % 3 > 0), str(n)) for n in range(30)]
    result = compared(Votes.of((*MODELS, "d"), rows), 100, 0)
    assert result["apart"] == ["d"]
    pairs = {(pair["first"], pair["second"]): pair for pair in result["pairs"]}
    through = pairs["a", "b"]["elo"] + pairs["b", "c"]["elo"]
    assert pairs["a", "c"]["elo"] == pytest.approx(through)
    assert pairs["a", "c"]["votes"] == 0
    assert np.isnan(pairs["a", "c"]["share"])
    assert pairs["a", "c"]["over_prompts"]["low"] < through < pairs["a", "c"]["over_prompts"]["high"]


def test_one_prompt_has_no_interval_over_prompts():
    rows = [("a", "b", float(n % 3 > 0), "the one") for n in range(30)]
    a = compared(Votes.of(("a", "b"), rows), 100, 0)["models"]["a"]
    assert np.isnan(a["over_prompts"]["low"])
    assert a["over_votes"]["low"] < a["elo"] < a["over_votes"]["high"]


def test_the_gain_of_a_vote_is_half_the_rise_of_the_informations_determinant():
    wins = np.array([[0, 8.0, 3], [2, 0, 1], [3, 1, 0]])
    gain, counted = information_gain(wins), wins + PRIOR * (1 - np.eye(3))
    chance = expit(np.subtract.outer(fit(counted)[0], fit(counted)[0]))

    def determinant(shown: np.ndarray) -> float:
        weight = shown * chance * (1 - chance)
        return np.linalg.slogdet((np.diag(weight.sum(1)) - weight)[1:, 1:])[1]

    for first, second in ((0, 1), (0, 2), (1, 2)):
        more = counted + counted.T
        more[first, second] += 1
        more[second, first] += 1
        rise = (determinant(more) - determinant(counted + counted.T)) / 2
        assert gain[first, second] == pytest.approx(rise)
    assert gain.argmax() in (5, 7), "b and c have met least"
