"""Judges a picture by what it really shows: how much of a prompt, which letters, and how tasteful.

Nothing here is learned from this world, and training never calls it: rewards are proxies, the judge is the truth. The
figure `read` alone is a published reader's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from textcraftor.toybox.published_reader import share_read
from textcraftor.toybox.world2.reading import Reading, SeenShape, read
from textcraftor.toybox.world2.scenes import MIDDLES, PLACES
from textcraftor.toybox.world2.styles import (
    PARTS,
    composition_part,
    finish_part,
    focus_part,
    ground_part,
    light_part,
    shadow_part,
    taste_of,
    tint_part,
)
from textcraftor.toybox.world2.wanted import Wanted, WantedShape, parse

WHOLE = ("faithfulness", "letters", "taste")  # of the picture as a whole
FACTS = ("color", "shape", "size", "place", "number", "ground", "row", "word")
FREE_STRAY, STRAY_SCALE = 0.01, 0.03  # stray share that costs nothing; what more divides taste by e
FREE_NOISE, NOISE_SCALE = 0.05, 0.03  # the same of noise, a standard deviation in [0, 1]


def row_of(reading: Reading) -> str | None:
    """The row on which most letters stand."""
    words = reading.words or {}
    return max(words, key=lambda row: len(words[row])) if any(words.values()) else None


def place_of(seen: SeenShape, row: str | None) -> str:
    """The named place that a shape is nearest to."""
    offset = np.array((seen.x - 32, seen.y - MIDDLES[row]))
    return min(PLACES, key=lambda place: float(np.hypot(*(offset - PLACES[place]))))


def clean_part(reading: Reading) -> float:
    """1 for a picture that a scene explains, falling with stray pixels and noise."""
    stray = max(reading.stray - FREE_STRAY, 0) / STRAY_SCALE
    return float(np.exp(-stray - max(reading.noise - FREE_NOISE, 0) / NOISE_SCALE))


def taste(reading: Reading) -> dict[str, float]:
    """Taste and its parts, each in [0, 1]: the style's, times how clean the picture is; all 0 without a shape."""
    style = reading.style
    if style is None or not reading.shapes:
        return dict.fromkeys(("taste", *PARTS, "clean"), 0.0)
    middle = MIDDLES[row_of(reading)]
    parts = {
        "light": light_part(style.strength),
        "focus": focus_part(style.softness),
        "ground": ground_part(style.gradient, style.stained),
        "finish": finish_part(style.shading),
        "shadow": shadow_part(style.shadow),
        "tint": tint_part([shape.vividness for shape in reading.shapes]),
        "composition": composition_part([(shape.x - 32, shape.y - middle) for shape in reading.shapes]),
    }
    clean = clean_part(reading)
    return {"taste": taste_of(parts) * clean, **parts, "clean": clean}


def _shape_facts(wanted: WantedShape, seen: SeenShape | None, row: str | None) -> dict[str, bool]:
    """Which of the facts that a prompt states about one shape hold for a shape that was read."""
    facts = {"color": seen is not None and seen.color == wanted.color}
    facts["shape"] = facts["color"] and seen is not None and seen.shape == wanted.shape
    if wanted.size:
        facts["size"] = facts["color"] and seen is not None and seen.size == wanted.size
    if wanted.place:
        facts["place"] = facts["color"] and seen is not None and place_of(seen, row) == wanted.place
    return facts


def check(wanted: Wanted, reading: Reading) -> list[tuple[str, bool]]:
    """Each fact of a prompt with whether the picture shows it: colour, shape, size and place of every shape
    (the last three only of a shape in the right colour), their number, the ground, the word's row. A word that nobody
    asked for is one more fact, which does not hold."""
    row = row_of(reading)
    seen: list[SeenShape | None] = [*reading.shapes, *[None] * len(wanted.shapes)]
    # Shapes are told apart by the assignment that grants the prompt most facts.
    options = (
        [_shape_facts(want, got, row) for want, got in zip(wanted.shapes, chosen, strict=True)]
        for chosen in itertools.permutations(seen[: len(wanted.shapes) + 4], len(wanted.shapes))
    )
    best = max(options, key=lambda option: sum(sum(facts.values()) for facts in option))
    facts = [(name, held) for shape in best for name, held in shape.items()]
    if wanted.shapes:
        facts.append(("number", len(reading.shapes) == len(wanted.shapes)))
    if wanted.ground:
        facts.append(("ground", reading.ground == wanted.ground))
    if wanted.row:
        facts.append(("row", row == wanted.row))
    if row and not wanted.word:
        facts.append(("word", False))
    return facts


def letters(wanted: Wanted, reading: Reading) -> float:
    """The share of the word's letters that stand in their place; letters too many count against it.
    NaN where the prompt wants no word. Without a wanted row the better of the two counts."""
    if not wanted.word:
        return float("nan")
    words = reading.words or {"top": "", "bottom": ""}
    return max(
        sum(a == b for a, b in zip(wanted.word, words[row], strict=False)) / max(len(wanted.word), len(words[row]))
        for row in ([wanted.row] if wanted.row else words)
    )


def figures(wanted: Wanted, reading: Reading) -> dict[str, float]:
    """All that is measured of a picture that was read: `WHOLE`, the parts of taste, and each kind of fact."""
    facts = check(wanted, reading)
    row = {
        "faithfulness": float(np.mean([held for _, held in facts])) if facts else float("nan"),
        "letters": letters(wanted, reading),
        **taste(reading),
    }
    for kind in FACTS:
        held = [value for name, value in facts if name == kind]
        row[f"fact_{kind}"] = float(np.mean(held)) if held else float("nan")
    return row


@dataclass
class Judge:
    """The measure that configuration names: `judge(images, prompts)` gives one figure per name and picture."""

    parts: bool = False  # also the parts of taste and each kind of fact

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Args: images, shape (batch, 3, 64, 64) in [0, 1]. Returns arrays (batch,), NaN where a prompt
        states nothing to judge by."""
        pictures = images.detach().float().permute(0, 2, 3, 1).cpu().numpy()
        wanted = [parse(prompt) for prompt in prompts]
        rows = [figures(own, read(picture)) for picture, own in zip(pictures, wanted, strict=True)]
        names = rows[0] if self.parts else WHOLE
        measures = {name: np.array([row[name] for row in rows]) for name in names}
        return measures | {"read": share_read(images, [(own.word, own.row) for own in wanted])}
