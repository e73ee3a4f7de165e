"""Scenes to pictures: antialiased, deterministic, from the palette, the shapes, the styles and one font."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from textcraftor.toybox.world2.scenes import (
    COLORS,
    GROUNDS,
    IMAGE_SIZE,
    LETTER_CELL,
    MIDDLES,
    ROWS,
    SIZES,
    Scene,
    Word,
    center_of,
)
from textcraftor.toybox.world2.styles import (
    Style,
    composition_part,
    finish_part,
    focus_part,
    ground_part,
    light_part,
    shadow_part,
    taste_of,
    tint_part,
)

OVERSAMPLING = 8
FONT_SIZE = 15
PATCH = 37  # pixels, side of the square in which a shape and its shadow are painted
DARKNESS = np.array((0.40, 0.43, 0.56), dtype=np.float32)  # factor of each channel in the darkest light: a blue dusk
HAZE = np.array((236, 226, 206), dtype=np.float32) / 255  # what faded pictures fade to: yellowed paper
FADING = 0.56  # share of haze in the most faded light
CHALK = np.array((176, 172, 164), dtype=np.float32) / 255  # what dull tints are mixed with
DULLNESS = 0.38  # share of chalk in the dullest tint
GRADIENT = 0.38  # share of light that the bottom of a gradient ground lacks
STAIN = np.array((112, 92, 66), dtype=np.float32) / 255
STAIN_COVER, STAIN_COUNT = 0.5, 20
LIT, SHADED = 0.28, 0.42  # shares of white at a shaded shape's upper left end, and of black at the other
HIGHLIGHT = 0.55  # share of white in the rim that catches the light
SHADOW = 0.55  # share of light that the ground lacks in a shadow
SHADOW_OFFSET, SHADOW_BLUR = (3, 4), 1.0


def _polygon(center: float, radii: list[float], turn: float) -> list[tuple[float, float]]:
    count = len(radii)
    return [
        (center + r * math.sin(2 * math.pi * i / count + turn), center - r * math.cos(2 * math.pi * i / count + turn))
        for i, r in enumerate(radii)
    ]


@cache
def shape_mask(shape: str, radius: float) -> np.ndarray:
    """Coverage of a shape centred in an odd square patch, float (PATCH, PATCH) in [0, 1]; radius in pixels."""
    image = Image.new("L", (PATCH * OVERSAMPLING, PATCH * OVERSAMPLING), 0)
    draw = ImageDraw.Draw(image)
    c, r = PATCH * OVERSAMPLING / 2, radius * OVERSAMPLING
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
    return np.asarray(image.resize((PATCH, PATCH), Image.Resampling.BOX), dtype=np.float32) / 255


@cache
def shape_layers(shape: str, radius: float, softness: float = 0.0) -> np.ndarray:
    """What a shape is painted from, float (4, PATCH, PATCH) in [0, 1]: its mask, the white that light adds where it is
    shaded, the black on its other side, and its shadow on the ground; each blurred by `softness` pixels."""
    mask = shape_mask(shape, radius)
    offset = np.arange(PATCH) - PATCH // 2
    toward_light = np.clip(-(offset[:, None] + offset[None, :]) / (2**0.5 * radius), -1, 1)
    rim = np.clip(mask - np.roll(mask, (2, 2), (0, 1)), 0, 1)
    lit = mask * np.maximum(LIT * np.clip(toward_light, 0, 1), HIGHLIGHT * rim)
    shaded = mask * SHADED * np.clip(-toward_light, 0, 1) * (1 - rim)
    shadow = ndimage.gaussian_filter(np.roll(mask, SHADOW_OFFSET[::-1], (0, 1)), SHADOW_BLUR) * (1 - mask)
    layers = np.stack([mask, lit, shaded, shadow]).astype(np.float32)
    return ndimage.gaussian_filter(layers, (0, softness, softness)) if softness else layers


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
    return [(LETTER_CELL * i, ROWS[word.row]) for i in range(len(word.text))]


def unit(color: Sequence[int]) -> np.ndarray:
    """An 8-bit colour as float32 (3,) in [0, 1]."""
    return np.asarray(color, dtype=np.float32) / 255


def tinted(color: str, vividness: float | np.ndarray) -> np.ndarray:
    """A named colour at this vividness in [0, 1]: float (..., 3) in [0, 1]."""
    dull = DULLNESS * (1 - np.asarray(vividness, dtype=np.float32))[..., None]
    return unit(COLORS[color]) * (1 - dull) + CHALK * dull


def light_on(light: str, strength: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A light as (gain, haze), each (..., 3): it turns a colour into `gain * color + haze`."""
    share = np.asarray(strength, dtype=np.float32)[..., None]
    match light:
        case "dark":
            return 1 - share * (1 - DARKNESS), share * np.zeros(3, dtype=np.float32)
        case "faded":
            return 1 - FADING * share * np.ones(3, dtype=np.float32), FADING * share * HAZE
        case _:
            return share * 0 + np.ones(3, dtype=np.float32), share * np.zeros(3, dtype=np.float32)


def stain_cover(seed: int) -> np.ndarray:
    """How much of each pixel is stained, float (64, 64) in [0, 1]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    cover = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    for x, y, radius in zip(
        *rng.uniform(0, IMAGE_SIZE, (2, STAIN_COUNT)), rng.uniform(1, 2.7, STAIN_COUNT), strict=True
    ):
        cover = np.maximum(cover, np.clip(radius + 0.5 - np.hypot(columns - x, rows - y), 0, 1))
    return cover


def paint_ground(ground: str, style: Style) -> np.ndarray:
    """The ground before anything stands on it, float32 (64, 64, 3) in [0, 1]."""
    picture = np.tile(unit(GROUNDS[ground]), (IMAGE_SIZE, IMAGE_SIZE, 1))
    if style.ground == "gradient":
        picture *= 1 - GRADIENT * np.linspace(0, 1, IMAGE_SIZE, dtype=np.float32)[:, None, None]
    if style.ground == "stained":
        picture += STAIN_COVER * stain_cover(style.stains)[..., None] * (STAIN - picture)
    return picture


def window(x: int, y: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a patch centred on (x, y) lies in the picture, and which part of the patch that is."""
    half = PATCH // 2
    rows, columns = (slice(max(c - half, 0), min(c + half + 1, IMAGE_SIZE)) for c in (y, x))
    inner_rows, inner_columns = (slice(s.start - c + half, s.stop - c + half) for s, c in ((rows, y), (columns, x)))
    return (rows, columns), (inner_rows, inner_columns)


def paint_shape(
    picture: np.ndarray, layers: np.ndarray, x: int, y: int, color: np.ndarray, shaded: float, shadow: float
) -> None:
    """Paint one shape and its shadow into a float (64, 64, 3) picture; `shaded` and `shadow` in [0, 1]."""
    outer, inner = window(x, y)
    mask, lit, dark, shade = layers[(slice(None), *inner)][..., None]
    area = picture[outer]
    area *= 1 - shadow * SHADOW * shade
    area *= 1 - mask
    area += color * (mask - shaded * (lit + dark)) + shaded * lit


def paint_word(picture: np.ndarray, word: Word, ink: np.ndarray) -> None:
    """Write a word into a float (64, 64, 3) picture, in this colour."""
    for letter, (x, y) in zip(word.text, letter_cells(word), strict=True):
        area = picture[y : y + LETTER_CELL, x : x + LETTER_CELL]
        area += letter_mask(letter)[..., None] * (ink - area)


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene, float32 (64, 64, 3) in [0, 1]."""
    style = scene.style
    picture = paint_ground(scene.ground, style)
    for shape in scene.shapes:
        layers, color = shape_layers(shape.shape, SIZES[shape.size]), tinted(shape.color, shape.vividness)
        paint_shape(picture, layers, *center_of(shape, scene.word), color, style.shaded, style.shadow)
    if scene.word:
        paint_word(picture, scene.word, unit(ink_on(scene.ground)))
    gain, haze = light_on(style.light, style.strength)
    return ndimage.gaussian_filter(picture * gain + haze, (style.softness, style.softness, 0), mode="nearest")


def style_parts(scene: Scene) -> dict[str, float]:
    """The seven parts of a scene's taste, each in (0, 1]."""
    style, middle = scene.style, MIDDLES[scene.word.row if scene.word else None]
    centers = [center_of(shape, scene.word) for shape in scene.shapes]
    return {
        "light": light_part(style.strength),
        "focus": focus_part(style.softness),
        "ground": ground_part(style.ground == "gradient", style.ground == "stained"),
        "finish": finish_part(style.shaded),
        "shadow": shadow_part(style.shadow),
        "tint": tint_part([shape.vividness for shape in scene.shapes]),
        "composition": composition_part([(x - 32, y - middle) for x, y in centers]),
    }


def taste_of_scene(scene: Scene) -> float:
    """The true taste of a scene, in (0, 1]."""
    return taste_of(style_parts(scene))
