"""Reads a picture back by fitting the rendered scene: ground, words, outlines, then the light and colours' names, and
last whatever the fitted scene leaves unexplained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from textcraftor.toybox.world2.ground import Ground, fit_ground
from textcraftor.toybox.world2.ink import InkWord, read_words
from textcraftor.toybox.world2.outlines import Outline, find_outlines, painted
from textcraftor.toybox.world2.palette import Palette, name_colors
from textcraftor.toybox.world2.render import (
    GRADIENT,
    HIGHLIGHT,
    SHADING,
    SHADOW,
    STAIN,
    STAIN_COVER,
    light_on,
)
from textcraftor.toybox.world2.scenes import SIZES

MIN_GROUND = 0.25  # share of a picture's pixels without which it has no ground
MAX_MISFIT = 0.2  # RGB distance of the ground from any that the world has
STAINED = 0.022  # share of the ground under stains from which it counts as stained
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


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    """How much of a direction in colour is in another, by least squares."""
    return float((part * whole).sum() / max(float((whole**2).sum()), 1e-4))


def _shading(outlines: list[Outline], gain: np.ndarray, haze: np.ndarray) -> float:
    """Of all shapes, weighted by how striking they are: from the layers that shading and the highlight add."""
    amounts, weights = [], []
    for outline in outlines:
        color = outline.paint[0] - haze
        shade, rim = SHADING * color, HIGHLIGHT * np.maximum(gain - color, 0)
        sizes = np.sqrt([(outline.layers[1] ** 2).sum(), (outline.layers[2] ** 2).sum()])
        found = np.concatenate([sizes[0] * outline.paint[1], sizes[1] * outline.paint[2]])
        amounts.append(np.clip(_share(found, np.concatenate([sizes[0] * shade, sizes[1] * rim])), 0, 1))
        weights.append(outline.energy)
    return float(np.average(amounts, weights=weights))


def _shadow(outlines: list[Outline], ground: np.ndarray) -> float:
    """Of all shapes, in [0, 1]; ground is its colour less the haze."""
    depths = [np.clip(_share(-outline.paint[3], SHADOW * ground), 0, 1) for outline in outlines]
    return float(np.mean(depths))


def _softness(outlines: list[Outline], words: list[InkWord]) -> float:
    """Blur of the picture in pixels: shapes and words weighted by how striking they are."""
    parts = [(outline.softness, outline.energy) for outline in outlines]
    parts += [(word.softness, float((word.mask**2).sum() * (word.color**2).sum())) for word in words]
    return float(np.average([part[0] for part in parts], weights=[part[1] for part in parts]))


def _unexplained(
    picture: np.ndarray, fitted: np.ndarray, field: np.ndarray, covered: np.ndarray, palette: Palette
) -> tuple[float, float]:
    """The shares of stained ground, and of stray pixels: what the fitted scene leaves, along the stains' colour or not.

    Args: covered, bool (64, 64): edges of fitted parts, where a pixel's place decides and not its colour.
    """
    gain, haze = light_on(palette.light, palette.strength)
    left = ndimage.gaussian_filter(picture - fitted, (0.7, 0.7, 0))
    toward = STAIN_COVER * (STAIN * gain + haze - field)
    share = (left * toward).sum(-1) / (toward**2).sum(-1)
    aside = np.linalg.norm(left - np.clip(share, 0, 1.2)[..., None] * toward, axis=-1)
    scale = float(gain.mean())
    stray = ~covered & (aside > STRAY * scale)
    open_ground = ~ndimage.binary_dilation(covered, iterations=1)
    stained = open_ground & (share > 0.4) & (aside < 0.5 * np.linalg.norm(toward, axis=-1))
    return float(stained.sum() / max(open_ground.sum(), 1)), float(stray.mean())


def _edges(outlines: list[Outline], words: list[InkWord]) -> np.ndarray:
    """Where fitted shapes, shadows and letters begin and end, and letters as a whole: bool (64, 64)."""
    edges = np.zeros((64, 64), dtype=bool)
    for outline in outlines:
        inside = outline.layers[0] > 0.5
        rim = ndimage.binary_dilation(inside, iterations=2) & ~ndimage.binary_erosion(inside, iterations=2)
        edges |= rim | (outline.layers[3] > 0.15)
    for word in words:
        edges |= ndimage.binary_dilation(word.mask > 0.15, iterations=1)
    return edges


def _style(
    ground: Ground, outlines: list[Outline], words: list[InkWord], palette: Palette, stained: float
) -> SeenStyle:
    gain, haze = light_on(palette.light, palette.strength)
    lit = ground.top - haze
    return SeenStyle(
        palette.light,
        palette.strength,
        _softness(outlines, words),
        float(np.clip(_share(-ground.change, GRADIENT * lit), 0, 1)),
        float(np.clip(stained / STAINED, 0, 1)),
        _shading(outlines, gain, haze),
        _shadow(outlines, lit),
    )


def read(picture: np.ndarray) -> Reading:
    """Read a picture, float (64, 64, 3) in [0, 1]."""
    picture = picture.astype(np.float32)
    ground = fit_ground(picture)
    field = ground.field.astype(np.float32)
    if ground.share < MIN_GROUND:
        return Reading(None)
    inked = read_words(picture - field)
    outlines = find_outlines(_without(picture, field, list(inked.values())), field)
    palette = name_colors(
        ground.top, [outline.paint[0] for outline in outlines], [word.color for word in inked.values()]
    )
    if palette.misfit > MAX_MISFIT:
        return Reading(None)
    inked = {row: word for (row, word), is_ink in zip(inked.items(), palette.is_ink, strict=True) if is_ink}
    named = [(o, c, v) for o, c, v in zip(outlines, palette.colors, palette.vividness, strict=True) if c]
    outlines = [outline for outline, _, _ in named]
    fitted = field
    for outline in outlines:
        fitted = painted(fitted, outline.layers, outline.paint)
    for word in inked.values():
        fitted = fitted + word.mask[..., None] * word.color
    words = list(inked.values())
    stained, stray = _unexplained(picture, fitted, field, _edges(outlines, words), palette)
    return Reading(
        palette.ground,
        tuple(
            SeenShape(color, o.shape, min(SIZES, key=lambda size: abs(SIZES[size] - o.radius)), o.x, o.y, vividness)
            for o, color, vividness in named
        ),
        {row: inked[row].text if row in inked else "" for row in ("top", "bottom")},
        _style(ground, outlines, words, palette, stained) if outlines else None,
        stray,
        ground.noise,
    )


def _without(picture: np.ndarray, field: np.ndarray, words: list[InkWord]) -> np.ndarray:
    """A picture with its words painted over by the ground."""
    for word in words:
        picture = np.where(ndimage.binary_dilation(word.mask > 0.1)[..., None], field, picture)
    return picture
