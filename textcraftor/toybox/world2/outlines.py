"""Finds shapes in what departs from the ground: each is fitted by least squares on the layers that scenes are
painted from (mask, shading, rim, shadow), whatever its colour; the outline that leaves least unexplained is read."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import ndimage

from textcraftor.toybox.world2.paint import (
    HALF,
    Canvas,
    Place,
    best_shading,
    best_softness,
    change_of,
    fit_places,
)
from textcraftor.toybox.world2.render import PATCH, shape_layers, window
from textcraftor.toybox.world2.scenes import IMAGE_SIZE, SHAPES, SIZES

RADII = tuple(range(min(SIZES.values()) - 1, max(SIZES.values()) + 2))
SOFTNESSES = (0.3, 0.9, 1.4, 1.9)  # sigmas in pixels that outlines are compared at
FINE_SOFTNESSES = tuple(0.25 * i for i in range(11))
TINT_SOFTNESSES = (0.0, 0.75, 1.5, 2.25, 3.0)
COARSE_SOFTNESSES = (0.5, 1.4)
COARSE = range(6, IMAGE_SIZE - 5, 2)  # centres that the first search compares, on every second pixel
REFINED_KINDS, REFINED_EACH = 5, 3  # outlines of the first search that the second one looks at, and of each of those
REACH = 4  # pixels around the place of the first search that the second one looks at
CLIMBED = 3  # shapes whose best candidates are improved upon
MIN_ENERGY = 0.6  # squared departure from the ground, summed over pixels and channels, below which nothing stands there
MIN_EXPLAINED = 0.75  # share of the departure that a shape must explain
MOST_SHAPES = 5


@dataclass(frozen=True)
class Outline:
    """A shape as fitted, its colour still without a name.

    Args:
        x, y: its centre in pixels.
        softness: blur at which it fits best, sigma in pixels.
        color: (3,), of its middle, in the picture's light.
        shading, shadow: how much of each it has, in [0, 1].
        mask, shade: float (64, 64), what it covers, and where its shadow falls.
        change: float (64, 64, 3), what it changes in the ground.
        explained: share of the departure from the ground around it that it explains.
        energy: squared departure that it explains.
    """

    shape: str
    radius: int
    x: int
    y: int
    softness: float
    color: np.ndarray
    shading: float
    shadow: float
    mask: np.ndarray
    shade: np.ndarray
    change: np.ndarray
    explained: float
    energy: float


def _bases(layers: np.ndarray) -> np.ndarray:
    """Orthonormal rows that span each outline's layers: (count, layers, pixels) to (layers * count, pixels)."""
    rows = np.linalg.qr(layers.transpose(0, 2, 1))[0].transpose(2, 0, 1)
    return np.ascontiguousarray(rows.reshape(-1, layers.shape[-1]), dtype=np.float32)


@cache
def _coarse() -> tuple[list[tuple[str, int]], np.ndarray]:
    """(shape, radius) of each coarse outline, and its basis at half the resolution, (2 * count, pixels): mask and
    light, for a search that knew shadows would take them for shapes."""
    kinds = list(itertools.product(SHAPES, SIZES.values(), COARSE_SOFTNESSES))
    layers = np.stack([np.pad(shape_layers(*kind)[:2], ((0, 0), (0, 1), (0, 1))) for kind in kinds])
    side = (PATCH + 1) // 2
    pooled = layers.reshape(len(kinds), 2, side, 2, side, 2).mean((3, 5))
    return [kind[:2] for kind in kinds], _bases(pooled.reshape(len(kinds), 2, -1))


@cache
def _fine(shape: str, near: int) -> tuple[list[tuple[str, int, float]], np.ndarray]:
    """Outlines of one shape around a radius, and their bases, (4 * count, pixels)."""
    radii = [radius for radius in RADII if abs(radius - near) <= 1]
    kinds = list(itertools.product([shape], radii, SOFTNESSES))
    layers = np.stack([shape_layers(*kind) for kind in kinds])
    return kinds, _bases(layers.reshape(len(kinds), 4, -1))


def _search(departure: np.ndarray) -> tuple[int, int, list[tuple[str, int]]]:
    """Where one shape would explain most, and which outlines would do so best there."""
    kinds, basis = _coarse()
    side = (PATCH + 1) // 2
    pooled = departure.reshape(IMAGE_SIZE // 2, 2, IMAGE_SIZE // 2, 2, 3).mean((1, 3))
    padded = np.pad(pooled, ((HALF // 2,) * 2, (HALF // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (0, 1))
    centres = slice(COARSE[0] // 2, COARSE[-1] // 2 + 1)
    rows = np.ascontiguousarray(windows[centres, centres]).reshape(-1, side * side)
    count = len(COARSE)
    fitted = np.square(rows @ basis.T).reshape(count, count, 3, 2, len(kinds))
    energy = sum(fitted[:, :, c, layer] for c in range(3) for layer in range(2))
    y, x, _ = np.unravel_index(energy.argmax(), energy.shape)
    around = energy[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max((0, 1))
    order = dict.fromkeys(kinds[index] for index in around.argsort()[::-1])
    return COARSE[x], COARSE[y], list(order)[:REFINED_KINDS]


def _candidates(departure: np.ndarray, x: int, y: int, kinds: list[tuple[str, int]]) -> list[Place]:
    """The best outlines of each kind within REACH pixels of a place."""
    pad = HALF + REACH
    padded = np.pad(departure, ((pad, pad), (pad, pad), (0, 0)))
    side = 2 * REACH + 1
    area = padded[y : y + 2 * pad + 1, x : x + 2 * pad + 1]
    windows = np.lib.stride_tricks.sliding_window_view(area, (PATCH, PATCH), (0, 1))
    rows = np.ascontiguousarray(windows).reshape(-1, PATCH * PATCH)
    places = []
    for kind in kinds:
        fine, basis = _fine(*kind)
        fitted = np.square(rows @ basis.T).reshape(side * side, 3, 4, len(fine))
        energy = sum(fitted[:, c, layer] for c in range(3) for layer in range(4))
        for which in energy.max(0).argsort()[::-1][:REFINED_EACH]:
            dy, dx = divmod(int(energy[:, which].argmax()), side)
            places.append(Place(*fine[which], x + dx - REACH, y + dy - REACH))
    return places


def _climb(canvas: Canvas, place: Place, shading: float) -> Place:
    """The outline in the neighbourhood of a place that explains most: a pixel or a radius at a time."""
    gain = float(fit_places(canvas, [place], shading).gain[0])
    for _ in range(6):
        options = [place._replace(x=place.x + dx, y=place.y + dy) for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        options += [place._replace(radius=place.radius + d) for d in (1, -1) if place.radius + d in RADII]
        options = [option for option in options if 0 <= option.x < IMAGE_SIZE and 0 <= option.y < IMAGE_SIZE]
        gains = fit_places(canvas, options, shading).gain
        if gains.max() <= gain:
            return place
        place, gain = options[int(gains.argmax())], float(gains.max())
    return place


def _finished(canvas: Canvas, place: Place, shading: float) -> Outline:
    """The outline at a place, with its blur and paint. Brightness and tint are fitted apart: what compresses pictures
    blurs tints more than edges."""
    bright, tint = canvas.brightness, canvas.tint
    softness = best_softness(bright, place, FINE_SOFTNESSES, shading)
    smoothness = max(softness, best_softness(tint, place, TINT_SOFTNESSES, shading))
    sharp, smooth = (place._replace(softness=round(4 * blur) / 4) for blur in (softness, smoothness))
    shading = best_shading(canvas, sharp)
    fits = fit_places(bright, [sharp], shading), fit_places(tint, [smooth], shading)
    change = change_of(bright, sharp, fits[0], shading) + change_of(tint, smooth, fits[1], shading)
    outer, inner = window(place.x, place.y)
    layers = np.zeros((4, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    layers[(slice(None), *outer)] = shape_layers(*sharp[:3])[(slice(None), *inner)]
    near = ndimage.binary_dilation(layers[0] > 0.1, iterations=2)
    departure = (canvas.picture - canvas.field)[near]
    before, left = float((departure**2).sum()), float(((departure - change[near]) ** 2).sum())
    return Outline(
        *(place.shape, place.radius, place.x, place.y, softness, fits[0].color[0] + fits[1].color[0]),
        *(shading, float(fit_places(canvas, [sharp], shading).shadow[0]), layers[0], layers[3], change),
        *(1 - left / max(before, 1e-6), before - left),
    )


def _fit_best(canvas: Canvas) -> Outline:
    """The outline that explains most of a picture's departure from the ground."""
    departure = canvas.picture - canvas.field
    places = _candidates(departure, *_search(departure))
    gains = np.stack([fit_places(canvas, places, shading).gain for shading in (0.0, 1.0)])
    shading = float(gains.max(1).argmax())
    best_of_each: dict[str, Place] = {}
    for index in gains[int(shading)].argsort()[::-1]:
        best_of_each.setdefault(places[index].shape, places[index])
    climbed = [_climb(canvas, place, shading) for place in list(best_of_each.values())[:CLIMBED]]
    return _finished(canvas, climbed[int(fit_places(canvas, climbed, shading).gain.argmax())], shading)


def _anything(departure: np.ndarray) -> bool:
    """Whether more than noise departs from the ground within any 15 x 15 pixels."""
    energy = (ndimage.gaussian_filter(departure, (1, 1, 0)) ** 2).sum(-1)
    return bool(ndimage.uniform_filter(energy, 15).max() * 15**2 > 0.5 * MIN_ENERGY)


def find_outlines(canvas: Canvas) -> list[Outline]:
    """Every shape of a picture, most striking first."""
    outlines: list[Outline] = []
    while len(outlines) < MOST_SHAPES and _anything(canvas.picture - canvas.field):
        outline = _fit_best(canvas)
        if outline.energy < MIN_ENERGY or outline.explained < MIN_EXPLAINED:
            break
        outlines.append(outline)
        # Where a shape was nothing else is sought.
        gone = ndimage.binary_dilation(outline.mask > 0.05)[..., None]
        canvas = replace(canvas, picture=np.where(gone, canvas.field, canvas.picture - outline.change))
    return outlines
