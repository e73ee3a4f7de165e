"""Fits shapes at known places to a picture: which colour, shading and shadow explain most of what departs from the
ground. All three enter as scenes are painted (see `render.paint_shape`), so nothing else can be explained by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np

from textcraftor.toybox.world2.render import PATCH, SHADOW, shape_layers
from textcraftor.toybox.world2.scenes import IMAGE_SIZE

HALF = PATCH // 2
LUMA = np.array((0.299, 0.587, 0.114), dtype=np.float32)
_MARGIN = ((0, 0), (HALF, HALF), (HALF, HALF))
DEEPEST = 1.1  # shadow that a fit may say, as scenes' is 1


class Place(NamedTuple):
    """An outline at a place: radius and centre in pixels, softness a sigma in pixels."""

    shape: str
    radius: int
    softness: float
    x: int
    y: int


@dataclass(frozen=True)
class Canvas:
    """A picture with its ground and light, in one or more channels.

    Args:
        picture, field: float (64, 64, channels), the second without anything on the ground.
        haze, white: (channels,), what black and white become in this light.
        lowest: of a colour, in each channel; the highest is 1.
        noise: standard deviation of its pixels.
    """

    picture: np.ndarray
    field: np.ndarray
    haze: np.ndarray
    white: np.ndarray
    lowest: float = 0.0
    noise: float = 0.0

    @cached_property
    def padded_field(self) -> np.ndarray:
        """Channels first, with a margin of HALF zeros."""
        return np.pad(self.field.transpose(2, 0, 1), _MARGIN)

    @cached_property
    def padded_departure(self) -> np.ndarray:
        """What the picture changes in its ground: channels first, with a margin of HALF zeros."""
        return np.pad((self.picture - self.field).transpose(2, 0, 1), _MARGIN)

    def mapped(self, change: Callable[[np.ndarray], np.ndarray], lowest: float) -> Canvas:
        """Every part of it changed alike."""
        parts = [change(part) for part in (self.picture, self.field, self.haze, self.white)]
        return Canvas(parts[0], parts[1], parts[2], parts[3], lowest)

    @property
    def brightness(self) -> Canvas:
        """Its luma, one channel."""
        return self.mapped(lambda part: (part @ LUMA)[..., None], 0.0)

    @property
    def tint(self) -> Canvas:
        """What is left of it without luma, three channels."""
        return self.mapped(lambda part: part - (part @ LUMA)[..., None], -1.0)


class Fit(NamedTuple):
    """Of each place: the squared departure from the ground that it explains, its colour (channels,) and its shadow."""

    gain: np.ndarray
    color: np.ndarray
    shadow: np.ndarray


def _patches(padded: np.ndarray, places: Sequence[Place]) -> np.ndarray:
    """What surrounds each place, (places, channels, pixels), from planes with a margin of HALF."""
    patches = [padded[:, place.y : place.y + PATCH, place.x : place.x + PATCH] for place in places]
    return np.stack(patches).reshape(len(places), -1, PATCH * PATCH)


def layers_at(places: Sequence[Place]) -> np.ndarray:
    """Each place's layers, (4, places, pixels); zero outside the picture."""
    layers = np.stack([shape_layers(*place[:3]) for place in places], 1).reshape(4, len(places), -1)
    return layers * _patches(_inside(), places)[:, 0]


@cache
def _inside() -> np.ndarray:
    """1 in the picture and 0 in its margin, (1, 64 + 2 HALF, 64 + 2 HALF)."""
    return np.pad(np.ones((1, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32), _MARGIN)


def fit_places(canvas: Canvas, places: Sequence[Place], shading: float) -> Fit:
    """Least squares of colour and shadow at each place, for one amount of shading in [0, 1]."""
    mask, lit, dark, shade = layers_at(places)
    ground, departure = _patches(canvas.padded_field, places), _patches(canvas.padded_departure, places)
    haze, white = canvas.haze[:, None], canvas.white[:, None]
    # departure + ground * mask = color * cover - shadow * darkened + (what is known of light and shade)
    cover = mask - shading * (lit + dark)
    darkened = (SHADOW * shade)[:, None] * (ground - haze)
    target = departure + ground * mask[:, None]
    if shading:
        target -= shading * (lit[:, None] * white + dark[:, None] * haze)
    covers = np.vecdot(cover, cover)[:, None]
    covered, shaded = np.vecdot(target, cover[:, None]), np.vecdot(darkened, cover[:, None])
    both, darks = np.vecdot(target, darkened).sum(1), np.vecdot(darkened, darkened).sum(1)
    depth = ((covered * shaded / covers).sum(1) - both) / np.maximum(darks - (shaded**2 / covers).sum(1), 1e-6)
    depth = np.clip(depth, 0, DEEPEST)
    color = np.clip((covered + depth[:, None] * shaded) / covers, canvas.lowest, 1)
    error = np.vecdot(target, target).sum(1) + (color * (color * covers - 2 * covered)).sum(1)
    error += depth * (2 * both - 2 * (color * shaded).sum(1) + depth * darks)
    return Fit(np.vecdot(departure, departure).sum(1) - error, color, depth)


def best_shading(canvas: Canvas, place: Place) -> float:
    """The amount of shading in [0, 1] that explains most."""
    none, half, full = (float(fit_places(canvas, [place], amount).gain[0]) for amount in (0.0, 0.5, 1.0))
    bend = 2 * half - none - full
    return float(np.clip(0.5 + 0.25 * (full - none) / bend, 0, 1)) if bend > 1e-6 else float(full > none)


def best_softness(canvas: Canvas, place: Place, steps: Sequence[float], shading: float) -> float:
    """The blur in pixels that explains most: of evenly spaced steps, and between them by a parabola."""
    gains = fit_places(canvas, [place._replace(softness=step) for step in steps], shading).gain
    best = int(gains.argmax())
    if not 0 < best < len(steps) - 1:
        return steps[best]
    before, at, after = gains[best - 1 : best + 2]
    bend = 2 * at - before - after
    return steps[best] + float((steps[1] - steps[0]) * 0.5 * (after - before) / bend if bend > 0 else 0.0)


def change_of(canvas: Canvas, place: Place, fit: Fit, shading: float) -> np.ndarray:
    """What a fitted shape changes in its ground, float (64, 64, channels)."""
    mask, lit, dark, shade = layers_at([place])
    ground, color = _patches(canvas.padded_field, [place])[0], fit.color[0][:, None]
    haze, white = canvas.haze[:, None], canvas.white[:, None]
    change = mask * (color - ground) - fit.shadow[0] * SHADOW * shade * (ground - haze)
    change += shading * (lit * (white - color) + dark * (haze - color))
    padded = np.zeros(canvas.padded_field.shape, dtype=np.float32)
    padded[:, place.y : place.y + PATCH, place.x : place.x + PATCH] = change.reshape(-1, PATCH, PATCH)
    return padded[:, HALF:-HALF, HALF:-HALF].transpose(1, 2, 0)
