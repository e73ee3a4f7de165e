"""What a claim's effect is, how its verdict follows, and that the stated power is there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import page_trend_test, spearmanr

from textcraftor.claims.verdict import Figures, detectable, effect, judged, overall, verdict
from textcraftor.config.claims import Check
from textcraftor.errors import UsageError
from textcraftor.evaluation.statistics import crossed_difference, paired_difference


def check(**keys) -> Check:
    return Check(**{"measure": "total", "holds": "above", **keys})


def arms(seeds: int = 5, prompts: int = 12, **shifts: float) -> dict[str, Figures]:
    """An untuned arm `base`, and trained ones that lie above it by so much."""
    rng = np.random.default_rng(0)
    found = {"base": Figures({"total": rng.normal(size=(1, prompts, 2))}, trained=False)}
    for name, shift in shifts.items():
        values = found["base"].measures["total"] + shift + rng.normal(0, 0.1, (seeds, prompts, 2))
        found[name] = Figures({"total": values}, trained=True)
    return found


def test_a_gain_has_the_crossed_interval_of_seeds_and_prompts():
    several = arms(tuned=0.5)
    found = judged(check(of={"tuned": 1, "base": -1}), several)
    wanted = crossed_difference(*(several[name].measures["total"] for name in ("base", "tuned")))
    assert {name: found[name] for name in ("mean", "low", "high", "n")} == pytest.approx(
        {name: wanted[name] for name in ("mean", "low", "high", "n")}
    )
    assert (found["seeds"], found["verdict"]) == (5, "supported")
    assert judged(check(of={"tuned": 1, "base": -1}, margin=0.9), several)["verdict"] == "contradicted"
    few = judged(check(of={"tuned": 1, "base": -1}), arms(seeds=4, tuned=0.5))
    assert (few["low"], few["detectable"], few["verdict"]) == (None, None, "undecided"), "too few training seeds"


def test_where_nothing_is_trained_the_interval_is_over_prompts():
    several = arms()
    several["other"] = Figures({"total": several["base"].measures["total"] * 2}, trained=False)
    found = judged(check(of={"other": 1, "base": -1}), several)
    wanted = paired_difference(*(several[name].measures["total"][0] for name in ("base", "other")))
    assert (found["low"], found["high"], found["seeds"]) == pytest.approx((wanted["low"], wanted["high"], 0))


def test_what_two_gains_have_beyond_their_sum():
    several = arms(one=0.5, other=0.3, both=0.8)
    found = judged(check(of={"both": 1, "base": 1, "one": -1, "other": -1}, holds="within", margin=0.2), several)
    assert found["mean"] == pytest.approx(0, abs=0.05)
    assert found["verdict"] == "supported"


def test_an_order_is_measured_as_page_does():
    """Each prompt's rank correlation is Spearman's, and Page's L of all prompts is linear in their mean."""
    rng = np.random.default_rng(1)
    several = {str(k): Figures({"total": rng.normal(0.3 * k, 1, (1, 9, 1))}, trained=False) for k in range(4)}
    found = effect(check(order=list(several)), several)
    table = np.stack([one.measures["total"][0, :, 0] for one in several.values()], 1)
    np.testing.assert_allclose(found[0], [spearmanr(range(4), row).statistic for row in table])
    k, n = 4, len(table)
    page = n * (k * (k + 1) ** 2 / 4 + found.mean() * (k**3 - k) / 12)
    assert page_trend_test(table).statistic == pytest.approx(page)
    alike = {name: Figures({"total": np.ones((1, 3, 1))}, trained=False) for name in "abc"}
    assert not effect(check(order=list(alike)), alike).any(), "arms that are all alike have no order"


@pytest.mark.parametrize(
    ("holds", "low", "high", "wanted"),
    [
        ("above", 0.2, 0.4, "supported"),
        ("above", 0.0, 0.4, "undecided"),
        ("above", -0.4, 0.1, "contradicted"),
        ("below", -0.4, 0.0, "supported"),
        ("below", 0.1, 0.4, "contradicted"),
        ("within", -0.05, 0.09, "supported"),
        ("within", -0.2, 0.05, "undecided"),
        ("within", 0.1, 0.3, "contradicted"),
        ("within", None, None, "undecided"),
    ],
)
def test_verdicts(holds, low, high, wanted):
    assert verdict(holds, 0.1, low, high) == wanted


def test_a_claim_is_as_good_as_its_worst_comparison():
    assert overall(["supported", "supported"]) == "supported"
    assert overall(["supported", "undecided"]) == "undecided"
    assert overall(["undecided", "contradicted"]) == "contradicted"
    assert overall([]) == "undecided"


def test_an_effect_that_can_be_shown_is_shown_four_times_in_five():
    """In simulated studies of 5 seeds and 32 prompts whose effect is what one of them says can be shown."""
    rng = np.random.default_rng(2)

    def study(shift: float) -> dict[str, float]:
        noise = rng.normal(0, 0.1, (5, 1, 1)) + rng.normal(0, 0.5, (1, 32, 1)) + rng.normal(0, 0.2, (5, 32, 1))
        return crossed_difference(np.zeros((1, 32, 1)), shift + noise)

    typical = np.median([detectable(one["low"], one["high"]) for one in (study(0) for _ in range(200))])
    shown = np.mean([study(float(typical))["low"] > 0 for _ in range(400)])
    assert 0.8 <= shown <= 0.99


def test_what_cannot_be_compared_is_refused():
    several = arms(tuned=0.5)
    with pytest.raises(UsageError, match="no measure taste in these pictures; there are total"):
        effect(check(measure="taste", of={"tuned": 1}), several)
    fewer = several | {"few": Figures({"total": np.ones((1, 3, 2))}, trained=False)}
    with pytest.raises(UsageError, match="arms of different prompts"):
        effect(check(of={"few": 1, "base": -1}), fewer)
