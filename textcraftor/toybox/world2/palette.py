"""Names colours under a light that is not known: the ground, the light and the tints that together fit best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from textcraftor.toybox.world2.render import ink_on, light_on, tinted, unit
from textcraftor.toybox.world2.scenes import COLORS, GROUNDS, colors_on

STRENGTHS = np.linspace(0, 1.1, 45)
VIVIDNESS = np.linspace(-0.15, 1.15, 27)
GROUND_WEIGHT = 10.0  # of the ground's squared misfit beside one shape's: many more pixels bear it out
STRENGTH_COST = 2e-4  # keeps light that is good within the noise from being called dark or faded
MAX_DISTANCE = 0.3  # RGB distance, under the light, to the nearest tint of a shape that has a name


MAX_INFLUENCE = 0.02  # squared RGB distance from all tints up to which a shape speaks against a light
MAX_INK_DISTANCE = 0.4  # RGB distance, under the light, of a word's colour from the ground's ink


@dataclass(frozen=True)
class Palette:
    """What the colours of a picture are called.

    Args:
        ground: name of the ground's colour.
        light, strength: as in `styles.Style`.
        colors: each shape's colour, None where no tint is near.
        vividness: each shape's, in [0, 1].
        is_ink: for each word, whether its colour is the ground's ink.
        misfit: RGB distance of the ground from the nearest that the world has.
    """

    ground: str
    light: str
    strength: float
    colors: tuple[str | None, ...]
    vividness: tuple[float, ...]
    is_ink: tuple[bool, ...]
    misfit: float


@cache
def _lights() -> tuple[list[tuple[str, float]], np.ndarray, np.ndarray]:
    """Every (light, strength), and its gain and haze, each (lights, 3)."""
    kinds = [("good", 0.0), *((light, float(s)) for light in ("dark", "faded") for s in STRENGTHS[1:])]
    gains, hazes = zip(*(light_on(*kind) for kind in kinds), strict=True)
    return kinds, np.stack(gains), np.stack(hazes)


@cache
def _tints() -> np.ndarray:
    """Every tint under every light, float32 (lights, colours, vividnesses, 3)."""
    _, gains, hazes = _lights()
    tints = np.stack([tinted(color, VIVIDNESS) for color in COLORS])
    return tints * gains[:, None, None] + hazes[:, None, None]


def _ink_distance(ground: str, inks: Sequence[np.ndarray]) -> np.ndarray:
    """How far each word's colour is from the ink of a ground under every light, (lights, words)."""
    _, gains, hazes = _lights()
    ink = unit(ink_on(ground)) * gains + hazes
    return np.stack([np.linalg.norm(color - ink, axis=-1) for color in inks], 1)


def _distances(paints: np.ndarray) -> np.ndarray:
    """Squared distance of colours, (shapes, 3), to all tints: (lights, shapes, colours, vividnesses)."""
    tints = _tints()
    squares = (tints**2).sum(-1)[:, None] + (paints**2).sum(-1)[:, None, None]
    return squares - 2 * np.moveaxis(tints @ paints.T, -1, 1)


def name_colors(top: np.ndarray, paints: Sequence[np.ndarray], inks: Sequence[np.ndarray]) -> Palette:
    """The palette that fits best.

    Args:
        top: the ground's colour at the top, (3,) in [0, 1].
        paints: each shape's colour, (3,).
        inks: each word's colour, (3,).
    """
    kinds, gains, hazes = _lights()
    # (lights, shapes, colours): the squared distance to the nearest tint of each colour.
    tints = _distances(np.stack(paints)) if len(paints) else None
    by_color = tints.min(-1) if tints is not None else None
    names, best, chosen = list(COLORS), np.inf, ("", 0)
    for ground in GROUNDS:
        cost = GROUND_WEIGHT * ((unit(GROUNDS[ground]) * gains + hazes - top) ** 2).sum(-1)
        cost = cost + STRENGTH_COST * np.array([strength for _, strength in kinds])
        if by_color is not None:
            allowed = [names.index(color) for color in colors_on(ground)]
            nearest = by_color[:, :, allowed].min(-1)
            cost = cost + np.minimum(nearest, MAX_INFLUENCE).sum(1)
        if inks:
            cost = cost + 0.3 * np.minimum(_ink_distance(ground, inks) ** 2, 0.3).sum(1)
        if cost.min() < best:
            best, chosen = float(cost.min()), (ground, int(cost.argmin()))
    ground, light = chosen
    colors, vividness = _named(tints[light], ground) if tints is not None else ((), ())
    misfit = float(np.linalg.norm(unit(GROUNDS[ground]) * gains[light] + hazes[light] - top))
    is_ink = tuple(d < MAX_INK_DISTANCE for d in _ink_distance(ground, inks)[light]) if inks else ()
    return Palette(ground, *kinds[light], colors, vividness, is_ink, misfit)


def _named(distances: np.ndarray, ground: str) -> tuple[tuple[str | None, ...], tuple[float, ...]]:
    """Each shape's colour and vividness, from squared distances (shapes, colours, vividnesses)."""
    allowed = [list(COLORS).index(color) for color in colors_on(ground)]
    colors: list[str | None] = []
    vividness: list[float] = []
    for options in distances[:, allowed]:
        color, step = np.unravel_index(options.argmin(), options.shape)
        near = options[color, step] <= MAX_DISTANCE**2
        colors.append(colors_on(ground)[int(color)] if near else None)
        vividness.append(float(np.clip(VIVIDNESS[step], 0, 1)))
    return tuple(colors), tuple(vividness)
