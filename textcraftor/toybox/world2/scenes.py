"""The grammar of the embedded world: which scenes exist, and which of them training may show.

A scene is a ground colour, one or two coloured shapes at named places, and sometimes a short word in capitals along
the top or the bottom. These are its facts, which prompts state. Its style (see `styles`) is what prompts leave free.
Everything random comes from the generator that the caller passes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import numpy as np

from textcraftor.toybox.world2.styles import Style, sample_quality, sample_style, sample_vividness

IMAGE_SIZE = 64

GROUNDS = {
    "white": (246, 246, 246),
    "black": (46, 46, 50),
    "navy": (34, 48, 124),
    "mint": (168, 228, 192),
    "peach": (255, 206, 172),
    "sky": (162, 210, 252),
}
COLORS = {
    "red": (222, 30, 36),
    "orange": (248, 134, 16),
    "yellow": (252, 222, 30),
    "green": (34, 146, 54),
    "teal": (10, 168, 168),
    "blue": (40, 76, 230),
    "purple": (138, 40, 190),
    "pink": (250, 108, 188),
    "brown": (118, 66, 26),
    "gray": (94, 102, 116),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = {"small": 7, "large": 11}  # radius in pixels
# Offsets from the middle of the free area, in pixels: (x, y).
PLACES = {
    "left": (-16, 0),
    "center": (0, 0),
    "right": (16, 0),
    "upper left": (-16, -11),
    "lower left": (-16, 11),
    "upper right": (16, -11),
    "lower right": (16, 11),
}
LEFT = tuple(name for name, (x, _) in PLACES.items() if x < 0)
RIGHT = tuple(name for name, (x, _) in PLACES.items() if x > 0)
MIDDLES = {None: 32, "top": 40, "bottom": 24}  # height of the free area's middle, by the word's row
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER_CELL = 16  # a word stands in 16-pixel cells, one row of the picture's height
ROWS = {"top": 0, "bottom": IMAGE_SIZE - LETTER_CELL}  # topmost pixel of each row for words
WORD_LENGTHS = (2, 3, 4)
JITTER = 1  # pixels by which a shape may stand off its named place
MIN_COLOR_DISTANCE = 100.0  # Euclidean, in 8-bit RGB, between a shape and its ground

# Colour-shape pairs that training never shows.
UNSEEN_PAIRS = frozenset(
    {
        ("red", "star"),
        ("blue", "triangle"),
        ("green", "ring"),
        ("yellow", "cross"),
        ("purple", "square"),
        ("orange", "circle"),
    }
)

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Shape:
    """One coloured shape; `jitter` is its (x, y) offset in pixels from the named place, `vividness` in [0, 1]."""

    color: str
    shape: str
    size: str
    place: str
    jitter: tuple[int, int] = (0, 0)
    vividness: float = 1.0


@dataclass(frozen=True)
class Word:
    """A word of 2 to 4 capitals on the top or the bottom row, written from the left edge."""

    text: str
    row: str  # "top" or "bottom"


@dataclass(frozen=True)
class Scene:
    """What one picture shows; `shapes` stand in the order in which captions name them."""

    ground: str
    shapes: tuple[Shape, ...]
    word: Word | None = None
    style: Style = field(default_factory=Style)


def color_distance(first: str, second: str) -> float:
    """Euclidean distance of two named colours in 8-bit RGB."""
    palette = {**GROUNDS, **COLORS}
    return float(np.linalg.norm(np.subtract(palette[first], palette[second], dtype=float)))


@cache
def colors_on(ground: str) -> tuple[str, ...]:
    """The colours that a shape may have on this ground: never close to the ground's own."""
    return tuple(c for c in COLORS if color_distance(c, ground) >= MIN_COLOR_DISTANCE)


def is_unseen_word(text: str) -> bool:
    """Whether training never shows this word: a fixed tenth of all words, by hash."""
    return hashlib.sha256(text.encode()).digest()[0] < 26


def center_of(shape: Shape, word: Word | None) -> tuple[int, int]:
    """The pixel (x, y) on which a shape is centred; a word shifts the free area's middle."""
    dx, dy = PLACES[shape.place]
    return 32 + dx + shape.jitter[0], MIDDLES[word.row if word else None] + dy + shape.jitter[1]


def boxes(scene: Scene) -> list[tuple[int, int, int, int]]:
    """Where its shapes and its word stand: (left, top, right, bottom) in pixels, which may lie outside the picture."""
    found = []
    for shape in scene.shapes:
        (x, y), radius = center_of(shape, scene.word), SIZES[shape.size]
        found.append((x - radius, y - radius, x + radius, y + radius))
    if scene.word:
        top = ROWS[scene.word.row]
        found.append((0, top, LETTER_CELL * len(scene.word.text), top + LETTER_CELL))
    return found


def sample_word(rng: np.random.Generator, split: Split) -> Word:
    """A random word; in training only seen ones, elsewhere an unseen one every second time."""
    want_unseen = split != "train" and rng.random() < 0.5
    while True:
        text = "".join(rng.choice(list(LETTERS), size=rng.choice(WORD_LENGTHS)))
        if is_unseen_word(text) == want_unseen:
            return Word(text, str(rng.choice(["top", "bottom"])))


def _sample_places(rng: np.random.Generator, is_beautiful: bool) -> list[str]:
    """One place, or two of which one is left and one right; beautiful scenes are balanced three times in four."""
    if rng.random() < 0.5:
        return ["center"] if is_beautiful and rng.random() < 0.75 else [str(rng.choice(list(PLACES)))]
    places = [str(rng.choice(LEFT)), str(rng.choice(RIGHT))]
    if is_beautiful and rng.random() < 0.75:
        opposite = {"left": "right", "upper left": "lower right", "lower left": "upper right"}
        places[1] = opposite[places[0]]
    rng.shuffle(places)
    return places


def _sample_shape(
    rng: np.random.Generator, split: Split, ground: str, place: str, taken: set[str], is_beautiful: bool
) -> Shape:
    """A shape in a colour that is not taken; outside training every third is a pair that training never shows."""
    want_unseen = split != "train" and rng.random() < 1 / 3
    options = [
        (color, shape)
        for color in colors_on(ground)
        for shape in SHAPES
        if color not in taken and ((color, shape) in UNSEEN_PAIRS) == want_unseen
    ]
    color, shape = options[rng.integers(len(options))]
    jitter = (int(rng.integers(-JITTER, JITTER + 1)), int(rng.integers(-JITTER, JITTER + 1)))
    return Shape(color, shape, str(rng.choice(list(SIZES))), place, jitter, sample_vividness(rng, is_beautiful))


def sample_scene(rng: np.random.Generator, split: Split = "train", word_probability: float = 0.5) -> Scene:
    """Draw a scene: its facts evenly, its style as the web would."""
    is_beautiful = sample_quality(rng)
    ground = str(rng.choice(list(GROUNDS)))
    shapes: list[Shape] = []
    for place in _sample_places(rng, is_beautiful):
        taken = {shape.color for shape in shapes}
        shapes.append(_sample_shape(rng, split, ground, place, taken, is_beautiful))
    word = sample_word(rng, split) if rng.random() < word_probability else None
    return Scene(ground, tuple(shapes), word, sample_style(rng, is_beautiful))
