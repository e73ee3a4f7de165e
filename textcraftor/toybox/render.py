"""Scenes to pictures: antialiased, deterministic, from the palette, the shapes and one font."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from textcraftor.toybox.scenes import COLORS, GROUNDS, IMAGE_SIZE, LETTER_CELL, SIZES, Scene, Word, center_of

OVERSAMPLING = 8
FONT_SIZE = 15


def _polygon(center: float, radii: list[float], turn: float) -> list[tuple[float, float]]:
    count = len(radii)
    return [
        (center + r * math.sin(2 * math.pi * i / count + turn), center - r * math.cos(2 * math.pi * i / count + turn))
        for i, r in enumerate(radii)
    ]


@cache
def shape_mask(shape: str, radius: int) -> np.ndarray:
    """Coverage of a shape centred in an odd square patch, float (2r+3, 2r+3) in [0, 1]; radius in pixels."""
    side = 2 * radius + 3
    image = Image.new("L", (side * OVERSAMPLING, side * OVERSAMPLING), 0)
    draw = ImageDraw.Draw(image)
    c, r = side * OVERSAMPLING / 2, radius * OVERSAMPLING
    match shape:
        case "circle":
            draw.ellipse((c - r, c - r, c + r, c + r), fill=255)
        case "ring":
            draw.ellipse((c - r, c - r, c + r, c + r), fill=255)
            draw.ellipse((c - 0.5 * r, c - 0.5 * r, c + 0.5 * r, c + 0.5 * r), fill=0)
        case "square":
            draw.rectangle((c - 0.86 * r, c - 0.86 * r, c + 0.86 * r, c + 0.86 * r), fill=255)
        case "triangle":
            draw.polygon([(c, c - r), (c + r, c + 0.8 * r), (c - r, c + 0.8 * r)], fill=255)
        case "star":
            draw.polygon(_polygon(c, [1.1 * r, 0.45 * r] * 5, 0.0), fill=255)
        case "cross":
            draw.rectangle((c - r, c - 0.32 * r, c + r, c + 0.32 * r), fill=255)
            draw.rectangle((c - 0.32 * r, c - r, c + 0.32 * r, c + r), fill=255)
        case _:
            raise ValueError(f"shape={shape!r} is not in the world")
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255


@cache
def letter_mask(letter: str) -> np.ndarray:
    """Coverage of a capital centred in its cell, float (16, 16) in [0, 1], in Pillow's built-in font."""
    side = LETTER_CELL * OVERSAMPLING
    image = Image.new("L", (side, side), 0)
    font = ImageFont.load_default(FONT_SIZE * OVERSAMPLING)
    ImageDraw.Draw(image).text(
        (side / 2, side / 2), letter, fill=255, font=font, anchor="mm", stroke_width=OVERSAMPLING // 2
    )
    return np.asarray(image.resize((LETTER_CELL,) * 2, Image.Resampling.BOX), dtype=np.float32) / 255


def ink_on(ground: str) -> tuple[int, int, int]:
    """The colour of a word: white on dark grounds, black on light ones."""
    return (255, 255, 255) if sum(GROUNDS[ground]) < 300 else (0, 0, 0)


def letter_cells(word: Word) -> list[tuple[int, int]]:
    """The (x, y) of the top left pixel of each letter's cell, from the left edge on."""
    y = 0 if word.row == "top" else IMAGE_SIZE - LETTER_CELL
    return [(LETTER_CELL * i, y) for i in range(len(word.text))]


def paint(picture: np.ndarray, mask: np.ndarray, left: int, top: int, color: tuple[int, int, int]) -> None:
    """Blend a colour into a float (height, width, 3) picture in [0, 1] where the mask covers it."""
    height, width = mask.shape
    area = picture[top : top + height, left : left + width]
    area += mask[..., None] * (np.asarray(color, dtype=np.float32) / 255 - area)


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene, float32 (64, 64, 3) in [0, 1]."""
    picture = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    picture[:] = np.asarray(GROUNDS[scene.ground], dtype=np.float32) / 255
    for shape in scene.shapes:
        mask = shape_mask(shape.shape, SIZES[shape.size])
        x, y = center_of(shape, scene.word)
        paint(picture, mask, x - mask.shape[1] // 2, y - mask.shape[0] // 2, COLORS[shape.color])
    if scene.word:
        for letter, (x, y) in zip(scene.word.text, letter_cells(scene.word), strict=True):
            paint(picture, letter_mask(letter), x, y, ink_on(scene.ground))
    return picture
