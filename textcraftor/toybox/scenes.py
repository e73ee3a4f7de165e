"""The grammar of the embedded world: which scenes exist, and which of them training may show.

A scene is a ground colour, one or two coloured shapes at named places, and sometimes a short word in
capitals along the top or the bottom. Everything random comes from the generator that the caller passes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

IMAGE_SIZE = 64

GROUNDS = {
    "white": (246, 246, 246),
    "black": (18, 18, 18),
    "navy": (24, 32, 96),
    "mint": (176, 232, 196),
    "peach": (255, 212, 180),
    "sky": (172, 214, 252),
}
COLORS = {
    "red": (218, 36, 40),
    "orange": (246, 138, 24),
    "yellow": (250, 220, 40),
    "green": (40, 150, 60),
    "teal": (20, 172, 172),
    "blue": (44, 84, 224),
    "purple": (136, 48, 184),
    "pink": (246, 120, 190),
    "brown": (122, 74, 36),
    "gray": (132, 132, 132),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = {"small": 7, "large": 11}  # radius in pixels
# Offsets from the middle of the free area, in pixels: (x, y).
PLACES = {
    "left": (-16, 0),
    "center": (0, 0),
    "right": (16, 0),
    "upper left": (-16, -10),
    "lower left": (-16, 10),
    "upper right": (16, -10),
    "lower right": (16, 10),
}
LEFT = tuple(name for name, (x, _) in PLACES.items() if x < 0)
RIGHT = tuple(name for name, (x, _) in PLACES.items() if x > 0)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER_CELL = 16  # a word stands in 16-pixel cells, one row of the picture's height
WORD_LENGTHS = (2, 3, 4)
JITTER = 1  # pixels by which a shape may stand off its named place
MIN_COLOR_DISTANCE = 90.0  # Euclidean, in 8-bit RGB, between a shape and its ground

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
    """One coloured shape; `jitter` is its (x, y) offset in pixels from the named place."""

    color: str
    shape: str
    size: str
    place: str
    jitter: tuple[int, int] = (0, 0)


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


def color_distance(first: str, second: str) -> float:
    """Euclidean distance of two named colours in 8-bit RGB."""
    palette = {**GROUNDS, **COLORS}
    return float(np.linalg.norm(np.subtract(palette[first], palette[second], dtype=float)))


def colors_on(ground: str) -> tuple[str, ...]:
    """The colours that a shape may have on this ground: never close to the ground's own."""
    return tuple(c for c in COLORS if color_distance(c, ground) >= MIN_COLOR_DISTANCE)


def is_unseen_word(text: str) -> bool:
    """Whether training never shows this word: a fixed tenth of all words, by hash."""
    return hashlib.sha256(text.encode()).digest()[0] < 26


def center_of(shape: Shape, word: Word | None) -> tuple[int, int]:
    """The pixel (x, y) on which a shape is centred; a word shifts the free area's middle."""
    middle = {None: 32, "top": 38, "bottom": 26}[word.row if word else None]
    dx, dy = PLACES[shape.place]
    return 32 + dx + shape.jitter[0], middle + dy + shape.jitter[1]


def sample_word(rng: np.random.Generator, split: Split) -> Word:
    """A random word; in training only seen ones, elsewhere an unseen one every second time."""
    want_unseen = split != "train" and rng.random() < 0.5
    while True:
        text = "".join(rng.choice(list(LETTERS), size=rng.choice(WORD_LENGTHS)))
        if is_unseen_word(text) == want_unseen:
            return Word(text, str(rng.choice(["top", "bottom"])))


def sample_scene(rng: np.random.Generator, split: Split = "train", word_probability: float = 0.5) -> Scene:
    """Draw a scene. Outside training every third shape is a colour-shape pair that training never shows."""
    ground = str(rng.choice(list(GROUNDS)))
    if rng.random() < 0.5:
        places = [str(rng.choice(list(PLACES)))]
    else:
        places = [str(rng.choice(LEFT)), str(rng.choice(RIGHT))]
        rng.shuffle(places)
    shapes: list[Shape] = []
    for place in places:
        want_unseen = split != "train" and rng.random() < 1 / 3
        taken = {shape.color for shape in shapes}
        options = [
            (color, shape)
            for color in colors_on(ground)
            for shape in SHAPES
            if color not in taken and ((color, shape) in UNSEEN_PAIRS) == want_unseen
        ]
        color, shape = options[rng.integers(len(options))]
        jitter = (int(rng.integers(-JITTER, JITTER + 1)), int(rng.integers(-JITTER, JITTER + 1)))
        shapes.append(Shape(color, shape, str(rng.choice(list(SIZES))), place, jitter))
    word = sample_word(rng, split) if rng.random() < word_probability else None
    return Scene(ground, tuple(shapes), word)
