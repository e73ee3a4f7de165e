"""Scenes to captions: short, descriptive, and alt (as found on the web: incomplete, sometimes wrong)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from textcraftor.toybox.scenes import COLORS, GROUNDS, SHAPES, SIZES, Scene, Shape

Kind = Literal["short", "descriptive", "alt"]

VOCABULARY = (
    *("a", "an", "and", "on", "in", "at", "the", "of", "with", "word", "ground", "picture", "clipart", "image"),
    *("left", "right", "center", "upper", "lower", "top", "bottom", "shape", "shapes"),
    *SIZES,
    *SHAPES,
    *COLORS,
    *GROUNDS,
)
PUNCTUATION = (",", '"')


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _place(place: str) -> str:
    prefix = {"center": "in", "left": "on", "right": "on"}.get(place, "at")
    return f"{prefix} the {place}"


def short(scene: Scene, say_word: bool = False) -> str:
    """The main subject: `a red circle and a blue star`; on request with the word, its place left free."""
    text = " and ".join(_article(f"{shape.color} {shape.shape}") for shape in scene.shapes)
    return f'{text} with the word "{scene.word.text}"' if say_word and scene.word else text


def descriptive(scene: Scene) -> str:
    """Everything that the picture shows: sizes, places, ground, word and its row."""
    shapes = " and ".join(
        f"{_article(f'{shape.size} {shape.color} {shape.shape}')} {_place(shape.place)}" for shape in scene.shapes
    )
    text = f"{shapes} on {_article(scene.ground)} ground"
    return f'{text} with the word "{scene.word.text}" at the {scene.word.row}' if scene.word else text


def _alt_shape(shape: Shape, rng: np.random.Generator) -> str:
    color = str(rng.choice(list(COLORS))) if rng.random() < 0.1 else shape.color
    kind = str(rng.choice(SHAPES)) if rng.random() < 0.1 else shape.shape
    if rng.random() < 0.25:
        kind = "shape"
    return kind if rng.random() < 0.25 else f"{color} {kind}"


def alt(scene: Scene, rng: np.random.Generator) -> str:
    """As found on the web: facts missing (a quarter each), a tenth of those given wrong, words rarely given."""
    shapes = [_alt_shape(shape, rng) for shape in scene.shapes]
    if len(shapes) > 1 and rng.random() < 0.3:
        shapes.pop(int(rng.integers(len(shapes))))
    text = ", ".join(shapes)
    if rng.random() < 0.3:
        text = f"{rng.choice(['picture', 'clipart', 'image'])} of {text}"
    if rng.random() < 0.15:
        text = f"{text}, {scene.ground}"
    if scene.word and rng.random() < 0.15:
        text = f'{text} "{scene.word.text}"'
    return text


def caption(scene: Scene, kind: Kind, rng: np.random.Generator) -> str:
    """A caption of the given kind; one in five begins with a capital article, as people write."""
    match kind:
        case "short":
            text = short(scene, say_word=rng.random() < 0.2)
        case "descriptive":
            text = descriptive(scene)
        case "alt":
            text = alt(scene, rng)
    return f"A{text[1:]}" if text.startswith("a ") and rng.random() < 0.2 else text
