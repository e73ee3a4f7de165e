"""Reads words in the world's own font: letters are fitted by least squares, whatever their colour, blur and shift."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from textcraftor.toybox.world2.render import letter_mask
from textcraftor.toybox.world2.scenes import IMAGE_SIZE, LETTER_CELL, LETTERS

ROWS = {"top": 0, "bottom": IMAGE_SIZE - LETTER_CELL}
CELLS = IMAGE_SIZE // LETTER_CELL
REACH = 4  # pixels by which a word may stand off its row
SOFTNESSES = (0.3, 0.8, 1.3, 1.8)  # sigmas in pixels that letters are compared at
MARGIN = 3  # pixels around a cell that a blurred letter reaches into
SIDE = LETTER_CELL + 2 * MARGIN
MIN_ENERGY = 0.35  # squared departure from the ground, summed over pixels and channels, of the faintest letter
MIN_EXPLAINED = 0.6  # share of the departure around a cell that its letter must explain


@dataclass(frozen=True)
class InkWord:
    """A word as fitted; `text` has `?` for ink that is no letter.

    Args:
        mask: float (64, 64), its ink's coverage.
        color: (3,), the ink's colour less the ground's.
        softness: sigma in pixels of the blur at which it fits best.
    """

    text: str
    mask: np.ndarray
    color: np.ndarray
    softness: float


@cache
def _templates(softness: float) -> np.ndarray:
    """Every letter at a blur, in its cell and a margin, float (letters, SIDE, SIDE)."""
    masks = np.stack([np.pad(letter_mask(letter), MARGIN) for letter in LETTERS])
    return ndimage.gaussian_filter(masks, (0, softness, softness)).astype(np.float32)


@cache
def _basis() -> np.ndarray:
    """Letters at all blurs, each of unit norm, float (softnesses * letters, SIDE**2)."""
    rows = np.concatenate([_templates(softness) for softness in SOFTNESSES]).reshape(-1, SIDE * SIDE)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _windows(departure: np.ndarray, top: int) -> np.ndarray:
    """What surrounds every cell of a row at every shift, (shifts, shifts, CELLS, 3, SIDE**2)."""
    margin = MARGIN + REACH
    padded = np.pad(departure, ((margin, margin), (margin, margin), (0, 0)))
    band = padded[top : top + LETTER_CELL + 2 * margin]
    windows = np.lib.stride_tricks.sliding_window_view(band, (SIDE, SIDE), (0, 1))
    shifts = 2 * REACH + 1
    cells = np.stack([windows[:, LETTER_CELL * i : LETTER_CELL * i + shifts] for i in range(CELLS)], 2)
    return np.ascontiguousarray(cells).reshape(shifts, shifts, CELLS, 3, SIDE * SIDE)


def read_row(departure: np.ndarray, row: str) -> InkWord | None:
    """The word on one row, from what departs from the ground, float32 (64, 64, 3); None where no letter stands."""
    top = ROWS[row]
    if (departure[top : top + LETTER_CELL] ** 2).sum() < MIN_ENERGY:
        return None
    windows = _windows(departure, top)
    fitted = np.square(windows @ _basis().T).sum(3)  # energy explained by each (shift y, shift x, cell, template)
    present = np.square(windows).sum((3, 4))
    fitted = fitted.reshape(*fitted.shape[:3], len(SOFTNESSES), len(LETTERS))
    # One shift and one blur for the whole word: those that explain most, less what they leave.
    gain = np.maximum(2 * fitted.max(-1) - present[..., None], 0).sum(2)
    dy, dx, blur = np.unravel_index(gain.argmax(), gain.shape)
    text, places = "", []
    for cell in range(CELLS):
        options = fitted[max(dy - 1, 0) : dy + 2, max(dx - 1, 0) : dx + 2, cell, blur].max((0, 1))
        energy = present[dy, dx, cell]
        if options.max() < MIN_ENERGY or energy < MIN_ENERGY:
            break
        is_letter = options.max() / energy >= MIN_EXPLAINED
        text += LETTERS[int(options.argmax())] if is_letter else "?"
        places.append((LETTER_CELL * cell + int(dx) - REACH, top + int(dy) - REACH))
    if not text.strip("?"):
        return None
    mask = _mask_of(text, places, SOFTNESSES[int(blur)])
    color = np.einsum("yx,yxc->c", mask, departure) / float((mask**2).sum())
    return InkWord(text, mask, color, _softness(departure, text, places, color))


def _mask_of(text: str, places: list[tuple[int, int]], softness: float) -> np.ndarray:
    """Coverage of letters whose cells' upper left corners stand at these (x, y), float (64, 64)."""
    margin = MARGIN + REACH
    canvas = np.zeros((IMAGE_SIZE + 2 * margin,) * 2, dtype=np.float32)
    for letter, (x, y) in zip(text, places, strict=True):
        if letter != "?":
            area = canvas[y + REACH : y + REACH + SIDE, x + REACH : x + REACH + SIDE]
            np.maximum(area, _templates(softness)[LETTERS.index(letter)], out=area)
    return canvas[margin:-margin, margin:-margin]


def _softness(departure: np.ndarray, text: str, places: list[tuple[int, int]], color: np.ndarray) -> float:
    """The blur in pixels at which a word fits best, between the steps by a parabola."""
    steps = [0.25 * i for i in range(10)]
    errors = []
    for step in steps:
        mask = _mask_of(text, places, step)
        along = departure @ color / (color @ color)
        errors.append(float((along**2).sum() - (mask * along).sum() ** 2 / (mask**2).sum()))
    best = int(np.argmin(errors))
    if not 0 < best < len(errors) - 1:
        return steps[best]
    before, at, after = errors[best - 1 : best + 2]
    bend = before - 2 * at + after
    return steps[best] + (0.125 * (before - after) / bend if bend > 0 else 0.0)


def read_words(departure: np.ndarray) -> dict[str, InkWord]:
    """The words on both rows, by row; rows without a letter are left out."""
    words = {row: read_row(departure.astype(np.float32), row) for row in ROWS}
    return {row: word for row, word in words.items() if word}
