"""Scenes to captions: short, descriptive, and alt (as found on the web: incomplete, sometimes wrong).

Short and alt captions never name the style; descriptive ones name up to three of its factors, so that a text encoder
can learn the words.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np

from textcraftor.toybox.world2.scenes import COLORS, GROUNDS, SHAPES, SIZES, Scene, Shape

Kind = Literal["short", "descriptive", "alt"]

LIGHT_WORDS = {"good": "bright", "dark": "dim", "faded": "faded"}
FOCUS_WORDS = ("sharp", "blurred")
GROUND_WORDS = ("plain", "gradient", "stained")
FINISH_WORDS = ("flat", "shaded")
TINT_WORDS = ("dull", "vivid")
VOCABULARY = (
    *("a", "an", "and", "on", "in", "at", "the", "of", "with", "no", "word", "ground", "picture", "clipart", "image"),
    *("left", "right", "center", "upper", "lower", "top", "bottom", "shape", "shapes", "light", "shadow"),
    *LIGHT_WORDS.values(),
    *FOCUS_WORDS,
    *GROUND_WORDS,
    *FINISH_WORDS,
    *TINT_WORDS,
    *SIZES,
    *SHAPES,
    *COLORS,
    *GROUNDS,
)
PUNCTUATION = (",", '"')
NAMED_FACTORS = ("light", "focus", "ground", "finish", "shadow", "tint")
MOST_NAMED = 3  # style factors in one caption, so that it fits the text encoder's context


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _place(place: str) -> str:
    prefix = {"center": "in", "left": "on", "right": "on"}.get(place, "at")
    return f"{prefix} the {place}"


def short(scene: Scene, say_word: bool = False) -> str:
    """The main subject: `a red circle and a blue star`; on request with the word, its place left free."""
    text = " and ".join(_article(f"{shape.color} {shape.shape}") for shape in scene.shapes)
    return f'{text} with the word "{scene.word.text}"' if say_word and scene.word else text


def _described_shape(scene: Scene, shape: Shape, named: Collection[str]) -> str:
    words = [shape.size, shape.color, shape.shape]
    if "finish" in named:
        words.insert(0, FINISH_WORDS[scene.style.shaded])
    if "tint" in named:
        words.insert(0, TINT_WORDS[shape.vividness > 0.6])
    return f"{_article(' '.join(words))} {_place(shape.place)}"


def descriptive(scene: Scene, named: Collection[str] = ()) -> str:
    """Everything that the picture shows: sizes, places, ground, word and its row; and the style factors in `named`."""
    style = scene.style
    text = " and ".join(_described_shape(scene, shape, named) for shape in scene.shapes)
    if "shadow" in named:
        text += " with a shadow" if style.shadow else " with no shadow"
    ground = f"{style.ground} {scene.ground}" if "ground" in named else scene.ground
    text += f" on {_article(ground)} ground"
    if scene.word:
        text += f' with the word "{scene.word.text}" at the {scene.word.row}'
    if "light" in named:
        text += f", in {LIGHT_WORDS[style.light]} light"
    return f"{text}, {FOCUS_WORDS[style.softness > 0]}" if "focus" in named else text


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
    """A caption of the given kind; short ones seldom hide a word, and one in five begins with a capital article."""
    match kind:
        case "short":
            text = short(scene, say_word=rng.random() < 0.9)
        case "descriptive":
            count = int(rng.integers(MOST_NAMED + 1))
            text = descriptive(scene, rng.choice(NAMED_FACTORS, count, replace=False).tolist())
        case "alt":
            text = alt(scene, rng)
    return f"A{text[1:]}" if text.startswith("a ") and rng.random() < 0.2 else text
