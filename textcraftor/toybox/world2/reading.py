"""Reads a picture back by fitting the rendered scene: ground, words, outlines, then the light and colours' names, and
last whatever the fitted scene leaves unexplained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from textcraftor.toybox.world2.ground import Ground, fit_ground
from textcraftor.toybox.world2.ink import InkWord, read_words
from textcraftor.toybox.world2.outlines import SURE, Outline, find_outlines
from textcraftor.toybox.world2.paint import Canvas
from textcraftor.toybox.world2.palette import Palette, name_colors
from textcraftor.toybox.world2.render import (
    GRADIENT,
    STAIN,
    STAIN_COVER,
    light_on,
)
from textcraftor.toybox.world2.scenes import ROWS, SIZES

MIN_GROUND = 0.25  # share of a picture's pixels without which it has no ground
MAX_MISFIT = 0.2  # RGB distance of the ground from any that the world has
STAINED = 0.022  # share of the ground under stains from which it counts as stained
MOST_NOISE = 0.035  # standard deviation that a picture is forgiven
LARGEST_BLOT = 11  # pixels, side of what may be a stain alone
STRAY = 0.16  # RGB distance from the fitted scene, in good light, from which a smoothed pixel is stray


@dataclass(frozen=True)
class SeenShape:
    """A shape read from a picture; x and y are its centre in pixels, vividness in [0, 1]."""

    color: str
    shape: str
    size: str
    x: int
    y: int
    vividness: float


@dataclass(frozen=True)
class SeenStyle:
    """A style read from a picture: strength, softness in pixels, and how much of each other factor, all in [0, 1]."""

    light: str
    strength: float
    softness: float
    gradient: float
    stained: float
    shading: float
    shadow: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows.

    Args:
        ground: None where it has none that the world knows; then nothing else is read.
        words: by row; "" where none stands.
        stray: share of the picture that no fitted part of a scene explains, in [0, 1].
        noise: standard deviation of the ground's pixels around it.
    """

    ground: str | None
    shapes: tuple[SeenShape, ...] = ()
    words: dict[str, str] | None = None
    style: SeenStyle | None = None
    stray: float = 1.0
    noise: float = 1.0


def _mean(parts: Sequence[tuple[float, float]]) -> float:
    """Of (value, weight)."""
    return float(np.average([value for value, _ in parts], weights=[weight for _, weight in parts]))


def _softness(outlines: list[Outline], words: list[InkWord]) -> float:
    """Blur of the picture in pixels: shapes and words weighted by how striking they are."""
    parts = [(outline.softness, outline.energy) for outline in outlines]
    parts += [(word.softness, float((word.mask**2).sum() * (word.color**2).sum())) for word in words]
    return _mean(parts)


def _unexplained(
    picture: np.ndarray, fitted: np.ndarray, field: np.ndarray, covered: np.ndarray, palette: Palette
) -> tuple[float, float]:
    """The shares of stained ground, and of stray pixels: what the fitted scene leaves, along the stains' colour or not.

    Args: covered, bool (64, 64): edges of fitted parts, where a pixel's place decides and not its colour.
    """
    gain, haze = light_on(palette.light, palette.strength)
    left = ndimage.gaussian_filter(picture - fitted, (0.7, 0.7, 0))
    toward = _toward_stain(field, gain, haze)
    share, aside = _along(left, toward)
    scale = float(gain.mean())
    stray = ~covered & (aside > STRAY * scale)
    open_ground = ~ndimage.binary_dilation(covered, iterations=1)
    stained = open_ground & (share > 0.4) & (aside < 0.5 * np.linalg.norm(toward, axis=-1))
    return float(stained.sum() / max(open_ground.sum(), 1)), float(stray.mean())


def _edges(outlines: list[Outline], words: list[InkWord]) -> np.ndarray:
    """Where fitted shapes, shadows and letters begin and end, and letters as a whole: bool (64, 64)."""
    edges = np.zeros((64, 64), dtype=bool)
    for outline in outlines:
        inside = outline.mask > 0.5
        rim = ndimage.binary_dilation(inside, iterations=2) & ~ndimage.binary_erosion(inside, iterations=2)
        edges |= rim | (outline.shade > 0.15)
    for word in words:
        edges |= ndimage.binary_dilation(word.mask > 0.15, iterations=1)
    return edges


def _style(
    ground: Ground, outlines: list[Outline], words: list[InkWord], palette: Palette, stained: float
) -> SeenStyle:
    lit = ground.top - light_on(palette.light, palette.strength)[1]
    return SeenStyle(
        palette.light,
        palette.strength,
        _softness(outlines, words),
        float(np.clip(-(ground.change @ lit) / (GRADIENT * max(float(lit @ lit), 1e-4)), 0, 1)),
        float(np.clip(stained / STAINED, 0, 1)),
        _mean([(outline.shading, outline.energy) for outline in outlines]),
        float(np.clip(np.mean([outline.shadow for outline in outlines]), 0, 1)),
    )


def read(picture: np.ndarray) -> Reading:
    """Read a picture, float (64, 64, 3) in [0, 1]."""
    picture = picture.astype(np.float32)
    ground = fit_ground(picture)
    field = ground.field.astype(np.float32)
    if ground.share < MIN_GROUND:
        return Reading(None)
    words, outlines = _fit_parts(picture, field, ground)
    inks = [_ink_color(word, field) for word in words]
    palette = name_colors(ground.top, [outline.color for outline in outlines], inks)
    if palette.misfit > MAX_MISFIT:
        return Reading(None)
    words = [word for word, is_ink in zip(words, palette.is_ink, strict=True) if is_ink]
    named = [(o, c, v) for o, c, v in zip(outlines, palette.colors, palette.vividness, strict=True) if c]
    outlines = [outline for outline, _, _ in named]
    fitted = _fitted(field, outlines, words)
    stained, stray = _unexplained(picture, fitted, field, _edges(outlines, words), palette)
    return Reading(
        palette.ground,
        tuple(
            SeenShape(color, o.shape, min(SIZES, key=lambda size: abs(SIZES[size] - o.radius)), o.x, o.y, vividness)
            for o, color, vividness in named
        ),
        dict.fromkeys(ROWS, "") | {word.row: word.text for word in words},
        _style(ground, outlines, words, palette, stained) if outlines else None,
        stray,
        ground.noise,
    )


def _fit_parts(picture: np.ndarray, field: np.ndarray, ground: Ground) -> tuple[list[InkWord], list[Outline]]:
    """Words, then the shapes beside them; then, the shapes being known, doubtful words again, as shadows reach into
    them."""
    words, light = _inked(read_words(picture - field), field, ground)
    gain, haze = light_on(light.light, light.strength)
    toward = _toward_stain(field, gain, haze)
    canvas = Canvas(
        _without_blots(picture, field, toward), field, haze, gain + haze, noise=min(ground.noise, MOST_NOISE)
    )
    outlines = find_outlines(_without(canvas, words))
    if all(word.is_sure for word in words) and len(words) == 1:
        return words, [outline for outline in outlines if not _is_blot(outline, toward)]
    again = read_words(_beside(picture - _fitted(field, outlines, []), outlines))
    if [word.text for word in again] != [word.text for word in words]:
        outlines = find_outlines(_without(canvas, again))
    return again, [outline for outline in outlines if not _is_blot(outline, toward)]


def _inked(words: list[InkWord], field: np.ndarray, ground: Ground) -> tuple[list[InkWord], Palette]:
    """The words that are written in the ground's ink, and the light that they and the ground speak for."""
    light = name_colors(ground.top, [], [_ink_color(word, field) for word in words])
    inked = [word for word, is_ink in zip(words, light.is_ink, strict=True) if is_ink]
    return (inked, light) if len(inked) == len(words) else _inked(inked, field, ground)


def _is_blot(outline: Outline, toward: np.ndarray) -> bool:
    """Whether a shape that fits poorly is some stains that run together: what it changes is what they do."""
    if outline.left <= SURE:
        return False
    energy = (outline.change**2).sum(-1)
    _, aside = _along(outline.change, toward)
    return bool((aside**2).sum() < 0.08 * energy.sum())


def _fitted(field: np.ndarray, outlines: list[Outline], words: list[InkWord]) -> np.ndarray:
    """The picture of everything that was fitted."""
    shapes = sum(outline.change for outline in outlines)
    return field + shapes + sum(word.mask[..., None] * word.color for word in words)


def _toward_stain(field: np.ndarray, gain: np.ndarray, haze: np.ndarray) -> np.ndarray:
    """What a stain changes in a ground, float (64, 64, 3)."""
    return STAIN_COVER * (STAIN * gain + haze - field)


def _along(departure: np.ndarray, toward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel has gone the way of a stain (1: all of it), and how far off that way: both (64, 64)."""
    share = (departure * toward).sum(-1) / (toward**2).sum(-1)
    return share, np.linalg.norm(departure - np.clip(share, 0, 1.2)[..., None] * toward, axis=-1)


def _without_blots(picture: np.ndarray, field: np.ndarray, toward: np.ndarray) -> np.ndarray:
    """A picture with those stains painted over that stand alone, too small for shapes."""
    departure, size = picture - field, np.linalg.norm(toward, axis=-1)
    _, aside = _along(departure, toward)
    parts, count = ndimage.label(np.linalg.norm(departure, axis=-1) > 0.25 * size)
    unlike = ndimage.mean(aside > 0.4 * size, parts, np.arange(1, count + 1))
    sizes = [max(side.stop - side.start for side in place) for place in ndimage.find_objects(parts)]
    is_blot = [False, *(size <= LARGEST_BLOT and other < 0.2 for size, other in zip(sizes, unlike, strict=True))]
    return np.where(ndimage.binary_dilation(np.array(is_blot)[parts])[..., None], field, picture)


def _without(canvas: Canvas, words: list[InkWord]) -> Canvas:
    """A picture with its words painted over by the ground."""
    for word in words:
        ink = ndimage.binary_dilation(word.cover > 0.1)[..., None]
        canvas = replace(canvas, picture=np.where(ink, canvas.field, canvas.picture))
    return canvas


def _beside(departure: np.ndarray, outlines: list[Outline]) -> np.ndarray:
    """A departure from the ground without what is left of it where shapes are."""
    for outline in outlines:
        departure = np.where(ndimage.binary_dilation(outline.mask > 0.05)[..., None], 0, departure)
    return departure


def _ink_color(word: InkWord, field: np.ndarray) -> np.ndarray:
    """A word's colour, (3,) in [0, 1]."""
    return np.clip(word.color + np.average(field.reshape(-1, 3), axis=0, weights=word.mask.ravel()), 0, 1)
