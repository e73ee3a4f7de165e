"""The first sentence of a report says what the intervals say, and believes held-out scorers before trained ones."""

from __future__ import annotations

import pytest

from textcraftor.evaluation.verdict import direction, roles_of, verdict

UP, DOWN, FLAT = ({"mean": m, "low": m - 0.1, "high": m + 0.1} for m in (0.5, -0.5, 0.05))


@pytest.mark.parametrize(
    ("total", "held", "says"),
    [
        (UP, UP, "The pictures became better by scorers that training did not use"),
        (UP, DOWN, "became worse by scorers that training did not use although the trained reward rose"),
        (UP, FLAT, "The trained reward rose, but no other scorer shows a gain"),
        (FLAT, FLAT, "No clear change"),
        (DOWN, FLAT, "The trained reward fell"),
    ],
)
def test_a_held_out_scorer_has_the_word(total, held, says):
    roles = roles_of(["aesthetic", "pickscore"], ["aesthetic"])
    sentence = verdict({"total": total, "aesthetic": total, "pickscore": held}, roles)
    assert says in sentence
    assert f"Trained total: {total['mean']:+.3f}" in sentence


def test_without_a_held_out_scorer_a_gain_is_unconfirmed():
    assert "no scorer was held out" in verdict({"total": UP, "hpsv2": UP}, roles_of(["hpsv2"], ["hpsv2"]))


def test_more_saturation_is_neither_better_nor_worse():
    assert (direction("saturation", UP), direction("drift", UP)) == ("", "")
    assert (direction("clip", UP), direction("clip", DOWN), direction("clip", FLAT)) == ("up", "down", "")
