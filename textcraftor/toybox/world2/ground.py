"""Finds the ground of a picture: the plane of colour that most of its pixels lie on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from textcraftor.toybox.world2.scenes import IMAGE_SIZE

TOLERANCE = 0.045  # distance in RGB, each in [0, 1], within which a smoothed pixel lies on the plane
GUESSES = 64
HEIGHT = np.linspace(0, 1, IMAGE_SIZE, dtype=np.float32)  # of each row, 0 at the top


@dataclass(frozen=True)
class Ground:
    """A ground that changes from top to bottom.

    Args:
        top: colour of the first row, (3,) in [0, 1].
        change: from the first row to the last, (3,).
        share: of the picture's pixels that lie on it.
        noise: standard deviation of those pixels around it, mean over channels.
    """

    top: np.ndarray
    change: np.ndarray
    share: float
    noise: float

    @property
    def field(self) -> np.ndarray:
        """Its picture, float32 (64, 64, 3)."""
        return np.broadcast_to((self.top + HEIGHT[:, None] * self.change)[:, None], (IMAGE_SIZE, IMAGE_SIZE, 3))


@cache
def _pairs() -> np.ndarray:
    """Pixels to guess from, (GUESSES, 2, 2) as (row, column): one from the upper third, one from the lower."""
    rng = np.random.default_rng(0)
    third = IMAGE_SIZE // 3
    rows = np.stack([rng.integers(0, third, GUESSES), rng.integers(IMAGE_SIZE - third, IMAGE_SIZE, GUESSES)], 1)
    return np.stack([rows, rng.integers(0, IMAGE_SIZE, (GUESSES, 2))], -1)


def _best_guess(smooth: np.ndarray) -> np.ndarray:
    """The plane through two pixels that most others lie on, (2, 3): colour of the top row, and change."""
    upper, lower = _pairs()[:, 0], _pairs()[:, 1]
    first, second = smooth[upper[:, 0], upper[:, 1]], smooth[lower[:, 0], lower[:, 1]]
    heights = HEIGHT[upper[:, 0], None], HEIGHT[lower[:, 0], None]
    change = (second - first) / (heights[1] - heights[0])
    top = first - heights[0] * change
    sample = smooth[1::4, 1::4]
    planes = top[:, None] + HEIGHT[1::4, None] * change[:, None]
    distance = np.linalg.norm(sample - planes[:, :, None], axis=-1)
    votes = (distance < TOLERANCE).sum((1, 2)) - 0.05 * np.linalg.norm(change, axis=1)
    best = int(votes.argmax())
    return np.stack([top[best], change[best]])


def fit_ground(picture: np.ndarray) -> Ground:
    """The ground of a picture, float (64, 64, 3) in [0, 1], by consensus and then robust least squares."""
    smooth = ndimage.gaussian_filter(picture, (1, 1, 0))
    plane = _best_guess(smooth)
    basis = np.stack([np.ones(IMAGE_SIZE, dtype=np.float32), HEIGHT], 1)
    for width in (TOLERANCE, TOLERANCE, 0.7 * TOLERANCE, 0.7 * TOLERANCE):
        distance = np.linalg.norm(smooth - (basis @ plane)[:, None], axis=-1)
        weight = np.clip(1 - (distance / width) ** 2, 0, 1)
        rows = weight.sum(1)
        normal = (basis * rows[:, None]).T @ basis + 1e-4 * np.eye(2)
        plane = np.linalg.solve(normal, basis.T @ np.einsum("yx,yxc->yc", weight, smooth) + 1e-4 * plane)
    near = distance < TOLERANCE
    noise = float((picture - (basis @ plane)[:, None])[near].std(0).mean()) if near.any() else 1.0
    return Ground(plane[0], plane[1], float(near.mean()), noise)
