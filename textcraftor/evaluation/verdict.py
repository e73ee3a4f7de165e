"""What a report says first: whether the pictures became better, and by whose word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from textcraftor.evaluation.statistics import interval_text

# Measures of which neither more nor less is better.
NEUTRAL = ("saturation", "contrast", "edges", "near_black", "near_white", "drift")
TRAINED, HELD_OUT = "trained on", "held out"
Changes = Mapping[str, Mapping[str, float]]


def roles_of(scorers: Iterable[str], trained: Iterable[str]) -> dict[str, str]:
    """By scorer, whether it is part of the loss: its gain alone says little of the pictures."""
    heard = {*trained}
    return {name: TRAINED if name in heard else HELD_OUT for name in scorers}


def direction(name: str, change: Mapping[str, float]) -> str:
    """`up` or `down` where the interval of a change excludes zero and more is better; else empty."""
    if name in NEUTRAL:
        return ""
    return "up" if change["low"] > 0 else "down" if change["high"] < 0 else ""


def verdict(changes: Changes, roles: Mapping[str, str]) -> str:
    """One or two sentences on all changes together.

    Args:
        changes: `paired_difference` by measure, `total` among them where scorers were trained on.
        roles: of the scorers, see `roles_of`.
    """
    held = [name for name, role in roles.items() if role == HELD_OUT and name in changes]
    ways = {name: direction(name, changes[name]) for name in held}
    rose, fell = ([name for name in held if ways[name] == way] for way in ("up", "down"))
    trained = direction("total", changes["total"]) if "total" in changes and TRAINED in roles.values() else None
    return " ".join(
        filter(None, [conclusion(trained, rose, fell, held), _of_total(changes, trained), _of_held(held, ways)])
    )


def conclusion(trained: str | None, rose: Sequence[str], fell: Sequence[str], held: Sequence[str]) -> str:
    """What the reader may conclude.

    Args:
        trained: the direction of the trained total; None where nothing is known to be trained on.
    """
    if rose and not fell:
        return "The pictures became better by scorers that training did not use."
    if fell and not rose:
        hacked = " although the trained reward rose: the reward was over-optimised" if trained == "up" else ""
        return f"The pictures became worse by scorers that training did not use{hacked}."
    if rose and fell:
        return "The scorers that training did not use disagree."
    if trained == "up":
        why = "no other scorer shows a gain" if held else "no scorer was held out that could confirm it"
        return f"The trained reward rose, but {why}."
    return "No clear change." if trained != "down" else "The trained reward fell."


def _of_total(changes: Changes, trained: str | None) -> str:
    if trained is None:
        return ""
    total = changes["total"]
    return f"Trained total: {total['mean']:+.3f} {interval_text(total, 3)}."


def _of_held(held: Sequence[str], ways: Mapping[str, str]) -> str:
    words = {"up": "rose", "down": "fell", "": "no clear change"}
    return f"Held out: {', '.join(f'{name} {words[ways[name]]}' for name in held)}." if held else ""
