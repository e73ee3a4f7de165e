"""Finds shapes in what departs from the ground: each is fitted by least squares on the layers that scenes are
painted from (mask, shading, rim, shadow), whatever its colour; the outline that leaves least unexplained is read."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

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
from textcraftor.toybox.world2.render import PATCH, SHADOW, shape_layers, window
from textcraftor.toybox.world2.scenes import IMAGE_SIZE, SHAPES, SIZES

RADII = tuple(range(min(SIZES.values()) - 1, max(SIZES.values()) + 2))
SOFTNESSES = (0.3, 1.1, 1.8)  # sigmas in pixels that outlines are compared at
EACH = len(SIZES) * len(SOFTNESSES)  # outlines of one shape
FINE_SOFTNESSES = tuple(0.25 * i for i in range(11))
TINT_SOFTNESSES = (0.0, 0.75, 1.5, 2.25, 3.0)
COARSE_SOFTNESSES = (0.5, 1.4)
COARSE = range(6, IMAGE_SIZE - 5, 2)  # centres that the first search compares, on every second pixel
REACH = 4  # pixels around the place of the first search that the second one looks at
CLIMBED = 3  # candidates that are improved upon
MIN_ENERGY = 0.6  # squared departure from the ground, summed over pixels and channels, below which nothing stands there
SURE = 0.05  # share of the departure that a shape leaves up to which it is no accident
MOST_LEFT, TRIFLE = 0.15, 0.3  # share of the departure that a shape may leave, and energy that it may leave beside it
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
        left: share of the departure from the ground around it that it leaves unexplained, noise apart.
        energy: squared departure that it explains there.
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
    left: float
    energy: float


def _bases(layers: np.ndarray) -> np.ndarray:
    """Orthonormal rows that span each outline's layers: (count, layers, pixels) to (layers * count, pixels)."""
    rows = np.linalg.qr(layers.transpose(0, 2, 1))[0].transpose(2, 0, 1)
    return np.ascontiguousarray(rows.reshape(-1, layers.shape[-1]), dtype=np.float32)


@cache
def _coarse() -> np.ndarray:
    """Bases of all outlines at half the resolution, (2 * count, pixels): mask and light, for a search that knew shadows
    would take them for shapes."""
    kinds = list(itertools.product(SHAPES, SIZES.values(), COARSE_SOFTNESSES))
    layers = np.stack([np.pad(shape_layers(*kind)[:2], ((0, 0), (0, 1), (0, 1))) for kind in kinds])
    side = (PATCH + 1) // 2
    pooled = layers.reshape(len(kinds), 2, side, 2, side, 2).mean((3, 5))
    return _bases(pooled.reshape(len(kinds), 2, -1))


class Outlines(NamedTuple):
    """Outlines: their (shape, radius, softness), layers (4 * count, pixels), and each one's products of layers with
    layers, (4, 4, count)."""

    kinds: list[tuple[str, int, float]]
    layers: np.ndarray
    products: np.ndarray


@cache
def _fine() -> Outlines:
    """All outlines in the world's sizes, shape by shape."""
    kinds = list(itertools.product(SHAPES, SIZES.values(), SOFTNESSES))
    layers = np.stack([shape_layers(*kind) for kind in kinds], 1).reshape(4, len(kinds), -1)
    return Outlines(kinds, layers.reshape(-1, PATCH * PATCH), np.einsum("anp,bnp->abn", layers, layers))


def _search(departure: np.ndarray) -> tuple[int, int]:
    """The (x, y) where one shape would explain most."""
    basis = _coarse()
    side = (PATCH + 1) // 2
    pooled = departure.reshape(IMAGE_SIZE // 2, 2, IMAGE_SIZE // 2, 2, 3).mean((1, 3))
    padded = np.pad(pooled, ((HALF // 2,) * 2, (HALF // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (0, 1))
    centres = slice(COARSE[0] // 2, COARSE[-1] // 2 + 1)
    rows = np.ascontiguousarray(windows[centres, centres]).reshape(-1, side * side)
    count = len(COARSE)
    fitted = np.square(rows @ basis.T).reshape(count, count, 3, 2, -1)
    energy = sum(fitted[:, :, c, layer] for c in range(3) for layer in range(2))
    y, x, _ = np.unravel_index(energy.argmax(), energy.shape)
    return COARSE[x], COARSE[y]


def _candidates(canvas: Canvas, x: int, y: int) -> list[tuple[float, float, Place]]:
    """The best place of each shape within REACH pixels of (x, y), flat and shaded: (gain, shading, place)."""
    pad = HALF + REACH
    padded = np.pad(canvas.picture - canvas.field, ((pad, pad), (pad, pad), (0, 0)))
    side = 2 * REACH + 1
    area = padded[y : y + 2 * pad + 1, x : x + 2 * pad + 1]
    windows = np.lib.stride_tricks.sliding_window_view(area, (PATCH, PATCH), (0, 1))
    rows = np.ascontiguousarray(windows).reshape(-1, PATCH * PATCH)
    fine, options = _fine(), []
    seen = (rows @ fine.layers.T).reshape(side * side, 3, 4, len(fine.kinds)).transpose(2, 0, 1, 3)
    for shading in (0.0, 1.0):
        gains = _gains(seen, fine.products, canvas, canvas.field[y, x], shading)
        for which in gains.max(0).reshape(len(SHAPES), -1).argmax(1) + np.arange(0, len(fine.kinds), EACH):
            dy, dx = divmod(int(gains[:, which].argmax()), side)
            shape, radius, softness = fine.kinds[which]
            place = Place(shape, radius, softness, x + dx - REACH, y + dy - REACH)
            options.append((float(gains[:, which].max()), shading, place))
    return sorted(options, key=lambda option: -option[0])


def _gains(seen: np.ndarray, products: np.ndarray, canvas: Canvas, ground: np.ndarray, shading: float) -> np.ndarray:
    """What `fit_places` would explain at many places at once, as if the ground were one colour and had no end.

    Args:
        seen: products of layers and departure, (4, places, 3, outlines).
        products: of layers and layers, (4, 4, outlines).
        ground: its colour there, (3,).
    Returns: (places, outlines).
    """
    weights = np.array((1, -shading, -shading, 0), dtype=np.float32)  # what of the layers the colour covers
    known = np.stack([ground, -shading * canvas.white, -shading * canvas.haze, 0 * ground])  # (4, 3), see fit_places
    depth_of = SHADOW * (ground - canvas.haze)
    cover = np.einsum("a,abn->bn", weights, products)
    covers = cover.T @ weights
    fixed = np.einsum("ac,abn->bcn", known, products)  # products of what is known with each layer
    covered = np.einsum("a,apcn->pcn", weights, seen) + np.einsum("b,bcn->cn", weights, fixed)
    shaded = depth_of[:, None] * cover[3]
    both = np.einsum("c,pcn->pn", depth_of, seen[3] + fixed[3])
    darks = (depth_of**2).sum() * products[3, 3]
    depth = ((covered * shaded).sum(1) / covers - both) / np.maximum(darks - (shaded**2).sum(0) / covers, 1e-6)
    depth = np.clip(depth, 0, 1)
    color = np.clip((covered + depth[:, None] * shaded) / covers, 0, 1)
    error = 2 * np.einsum("ac,apcn->pn", known, seen) + np.einsum("bc,bcn->n", known, fixed)
    error += (color * (color * covers - 2 * covered)).sum(1)
    return -(error + depth * (2 * both - 2 * (color * shaded).sum(1) + depth * darks))


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
    whole = fit_places(canvas, [sharp], shading)
    fits = fit_places(bright, [sharp], shading), fit_places(tint, [smooth], shading)
    change = change_of(bright, sharp, fits[0], shading) + change_of(tint, smooth, fits[1], shading)
    outer, inner = window(place.x, place.y)
    layers = np.zeros((4, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    layers[(slice(None), *outer)] = shape_layers(*sharp[:3])[(slice(None), *inner)]
    near = ndimage.binary_dilation(layers[0] > 0.1, iterations=2)
    departure = (canvas.picture - canvas.field)[near]
    noise = 2.7 * float(near.sum()) * canvas.noise**2
    before, left = float((departure**2).sum()), float(((departure - change[near]) ** 2).sum())
    return Outline(
        *(place.shape, place.radius, place.x, place.y, softness, fits[0].color[0] + fits[1].color[0]),
        *(shading, float(whole.shadow[0]), layers[0], layers[3], change),
        *(max(left - noise, 0) / max(before - noise, 1e-6), before - left),
    )


def _fit_best(canvas: Canvas) -> Outline:
    """The outline that explains most of a picture's departure from the ground."""
    options = _candidates(canvas, *_search(canvas.picture - canvas.field))
    climbed = [(_climb(canvas, place, shading), shading) for _, shading, place in options[:CLIMBED]]
    return _finished(canvas, *max(climbed, key=lambda option: fit_places(canvas, [option[0]], option[1]).gain[0]))


def _anything(departure: np.ndarray) -> bool:
    """Whether more than noise departs from the ground within any 15 x 15 pixels."""
    energy = (ndimage.gaussian_filter(departure, (1, 1, 0)) ** 2).sum(-1)
    return bool(ndimage.uniform_filter(energy, 15).max() * 15**2 > 0.5 * MIN_ENERGY)


def _convinces(outline: Outline) -> bool:
    """Whether a shape explains enough: all but a small share of what is there, or all but a trifle."""
    return outline.energy >= MIN_ENERGY and outline.left <= MOST_LEFT + TRIFLE / outline.energy


def find_outlines(canvas: Canvas) -> list[Outline]:
    """Every shape of a picture, most striking first."""
    outlines: list[Outline] = []
    while len(outlines) < MOST_SHAPES and _anything(canvas.picture - canvas.field):
        outline = _fit_best(canvas)
        if not _convinces(outline):
            break
        outlines.append(outline)
        # Where a shape was nothing else is sought.
        gone = ndimage.binary_dilation(outline.mask > 0.05)[..., None]
        canvas = replace(canvas, picture=np.where(gone, canvas.field, canvas.picture - outline.change))
    return outlines
