"""What a prompt states, in the words of the world's grammar."""

from __future__ import annotations

import re
from dataclasses import dataclass

from textcraftor.toybox.world2.scenes import COLORS, GROUNDS, PLACES, SHAPES, SIZES


@dataclass(frozen=True)
class WantedShape:
    color: str
    shape: str
    size: str | None
    place: str | None


@dataclass(frozen=True)
class Wanted:
    """The facts that a prompt states; None where it leaves them free."""

    shapes: tuple[WantedShape, ...] = ()
    ground: str | None = None
    word: str | None = None
    row: str | None = None


_SHAPE = re.compile(
    rf"(?:an? )?(?:({'|'.join(SIZES)}) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
    rf"(?: (?:in|on|at) the ({'|'.join(sorted(PLACES, key=len, reverse=True))})\b)?",
    re.IGNORECASE,
)
_GROUND = re.compile(rf"({'|'.join(GROUNDS)}) ground", re.IGNORECASE)
_WORD = re.compile(r'"([A-Z]+)"(?: at the (top|bottom))?')


def parse(prompt: str) -> Wanted:
    """The facts of a prompt written in the world's grammar; what the grammar does not know is no fact."""
    ground, word = _GROUND.search(prompt), _WORD.search(prompt)
    return Wanted(
        tuple(
            WantedShape(color.lower(), shape.lower(), size.lower() or None, place.lower() or None)
            for size, color, shape, place in _SHAPE.findall(prompt)
        ),
        ground.group(1).lower() if ground else None,
        word.group(1) if word else None,
        word.group(2) if word else None,
    )
