"""Finds shapes in what departs from the ground: each is fitted by least squares on the layers that scenes are
painted from (mask, shading, rim, shadow), whatever its colour; the outline that leaves least unexplained is read."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from textcraftor.toybox.world2.render import PATCH, shape_layers, window
from textcraftor.toybox.world2.scenes import IMAGE_SIZE, SHAPES, SIZES

HALF = PATCH // 2
RADII = tuple(range(min(SIZES.values()) - 1, max(SIZES.values()) + 2))
SOFTNESSES = (0.3, 0.9, 1.4, 1.9)  # sigmas in pixels that outlines are compared at
FINE_SOFTNESSES = tuple(0.25 * i for i in range(11))
COARSE_SOFTNESSES = (0.5, 1.4)
COARSE = range(6, IMAGE_SIZE - 5, 2)  # centres that the first search compares, on every second pixel
REFINED_SHAPES = 4  # outlines of the first search that the second one looks at
MIN_ENERGY = 0.6  # squared departure from the ground, summed over pixels and channels, below which nothing stands there
MIN_EXPLAINED = 0.86  # share of the departure that a shape must explain
MOST_SHAPES = 5


@dataclass(frozen=True)
class Outline:
    """A shape as fitted, its colours still without names.

    Args:
        x, y: its centre in pixels.
        softness: blur at which it fits best, sigma in pixels.
        layers: float (4, 64, 64), the layers it is painted from, where it stands.
        paint: float (4, 3), each layer's colour, see `fit_at`.
        explained: share of the departure from the ground around it that it explains.
        energy: squared departure that it explains.
    """

    shape: str
    radius: int
    x: int
    y: int
    softness: float
    layers: np.ndarray
    paint: np.ndarray
    explained: float
    energy: float


def _bases(layers: np.ndarray) -> np.ndarray:
    """Orthonormal rows that span flattened layers, (count, 4, pixels) to the same shape."""
    return np.linalg.qr(layers.transpose(0, 2, 1))[0].transpose(0, 2, 1).astype(np.float32)


@cache
def _coarse() -> tuple[list[tuple[str, int]], np.ndarray]:
    """(shape, radius) of each coarse outline, and its basis at half the resolution, (count * 4, pixels)."""
    kinds = list(itertools.product(SHAPES, SIZES.values(), COARSE_SOFTNESSES))
    layers = np.stack([np.pad(shape_layers(*kind), ((0, 0), (0, 1), (0, 1))) for kind in kinds])
    side = (PATCH + 1) // 2
    pooled = layers.reshape(len(kinds), 4, side, 2, side, 2).mean((3, 5))
    return [kind[:2] for kind in kinds], _bases(pooled.reshape(len(kinds), 4, -1)).reshape(-1, side * side)


@cache
def _fine(shape: str, near: int) -> tuple[list[tuple[str, int, float]], np.ndarray]:
    """Outlines of one shape around a radius, and their bases, (count * 4, pixels)."""
    radii = [radius for radius in RADII if abs(radius - near) <= 1]
    kinds = list(itertools.product([shape], radii, SOFTNESSES))
    layers = np.stack([shape_layers(*kind) for kind in kinds])
    return kinds, _bases(layers.reshape(len(kinds), 4, -1)).reshape(-1, PATCH * PATCH)


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
    energy = ((rows @ basis.T) ** 2).reshape(count, count, 3, len(kinds), 4).sum((2, 4))
    y, x, _ = np.unravel_index(energy.argmax(), energy.shape)
    around = energy[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max((0, 1))
    order = dict.fromkeys(kinds[index] for index in around.argsort()[::-1])
    return COARSE[x], COARSE[y], list(order)[:REFINED_SHAPES]


def _candidates(
    departure: np.ndarray, x: int, y: int, kinds: list[tuple[str, int]], count: int = 8
) -> list[tuple[str, int, float, int, int]]:
    """The best (shape, radius, softness, x, y) within 3 pixels of a place, best first."""
    padded = np.pad(departure, ((HALF + 4,) * 2, (HALF + 4,) * 2, (0, 0)))
    area = padded[y + 1 : y + 8 + 2 * HALF, x + 1 : x + 8 + 2 * HALF]
    windows = np.lib.stride_tricks.sliding_window_view(area, (PATCH, PATCH), (0, 1))
    rows = np.ascontiguousarray(windows).reshape(-1, PATCH * PATCH)
    options = []
    for kind in kinds:
        fine, basis = _fine(*kind)
        energy = ((rows @ basis.T) ** 2).reshape(7, 7, 3, len(fine), 4).sum((2, 4))
        for index in energy.ravel().argsort()[::-1][:count]:
            dy, dx, which = np.unravel_index(index, energy.shape)
            options.append((energy[dy, dx, which], (*fine[which], x + int(dx) - 3, y + int(dy) - 3)))
    options.sort(key=lambda option: -option[0])
    return [option for _, option in options[: 2 * count]]


def fit_at(
    picture: np.ndarray, field: np.ndarray, shape: str, radius: int, softness: float, x: int, y: int
) -> tuple[float, np.ndarray]:
    """Least squares of `picture = field (1 - mask) + layers . paint` in the window around a place.

    Returns the squared error, and the paint (4, 3): the shape's colour, what its shading adds, what its rim adds, and
    what its shadow takes from the ground (negative).
    """
    outer, inner = window(x, y)
    layers = shape_layers(shape, radius, softness)[(slice(None), *inner)].reshape(4, -1)
    ground = field[outer].reshape(-1, 3)
    target = picture[outer].reshape(-1, 3) - ground * (1 - layers[0][:, None])
    normal = layers @ layers.T + 1e-3 * np.eye(4, dtype=np.float32)
    moment = layers @ target
    paint = np.linalg.solve(normal, moment)
    return float((target**2).sum() - (moment * paint).sum()), paint


def _fine_softness(picture: np.ndarray, field: np.ndarray, place: tuple[str, int, int, int]) -> float:
    """The blur in pixels at which an outline fits best, between the steps by a parabola."""
    shape, radius, x, y = place
    errors = np.array([fit_at(picture, field, shape, radius, s, x, y)[0] for s in FINE_SOFTNESSES])
    best = int(errors.argmin())
    if not 0 < best < len(errors) - 1:
        return FINE_SOFTNESSES[best]
    before, at, after = errors[best - 1 : best + 2]
    bend = before - 2 * at + after
    return FINE_SOFTNESSES[best] + (0.25 * 0.5 * (before - after) / bend if bend > 0 else 0.0)


def _fit_best(picture: np.ndarray, field: np.ndarray, departure: np.ndarray) -> Outline:
    """The outline that explains most of a departure from the ground."""
    candidates = _candidates(departure, *_search(departure))
    errors = [fit_at(picture, field, *candidate)[0] for candidate in candidates]
    shape, radius, _, x, y = candidates[int(np.argmin(errors))]
    softness = _fine_softness(picture, field, (shape, radius, x, y))
    rounded = round(4 * softness) / 4
    _, paint = fit_at(picture, field, shape, radius, rounded, x, y)
    outer, inner = window(x, y)
    layers = np.zeros((4, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    layers[(slice(None), *outer)] = shape_layers(shape, radius, rounded)[(slice(None), *inner)]
    near = ndimage.binary_dilation(layers[0] > 0.1, iterations=2)
    left = (picture - painted(field, layers, paint))[near]
    before = float((departure[near] ** 2).sum())
    explained = 1 - float((left**2).sum()) / max(before, 1e-6)
    return Outline(shape, radius, x, y, softness, layers, paint, explained, before * explained)


def painted(picture: np.ndarray, layers: np.ndarray, paint: np.ndarray) -> np.ndarray:
    """A picture with a fitted shape painted over it."""
    return picture * (1 - layers[0][..., None]) + np.einsum("lyx,lc->yxc", layers, paint)


def _anything(departure: np.ndarray) -> bool:
    """Whether more than noise departs from the ground within any 15 x 15 pixels."""
    energy = (ndimage.gaussian_filter(departure, (1, 1, 0)) ** 2).sum(-1)
    return bool(ndimage.uniform_filter(energy, 15).max() * 15**2 > 0.5 * MIN_ENERGY)


def find_outlines(picture: np.ndarray, field: np.ndarray) -> list[Outline]:
    """Every shape on a ground, most striking first; picture and field are float (64, 64, 3) in [0, 1]."""
    outlines: list[Outline] = []
    rest = picture.astype(np.float32)
    while len(outlines) < MOST_SHAPES:
        departure = rest - field
        if not _anything(departure):
            break
        outline = _fit_best(rest, field, departure)
        if outline.energy < MIN_ENERGY or outline.explained < MIN_EXPLAINED:
            break
        outlines.append(outline)
        gone = ndimage.binary_dilation(outline.layers[0] > 0.05, iterations=1)[..., None]
        shade = np.einsum("yx,c->yxc", outline.layers[3], outline.paint[3])
        rest = np.where(gone, field, rest - shade)
    return outlines
