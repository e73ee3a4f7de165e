"""Reads words in the world's own font: letters are fitted by least squares, whatever their colour, blur and shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from textcraftor.toybox.world2.render import letter_mask
from textcraftor.toybox.world2.scenes import IMAGE_SIZE, LETTER_CELL, LETTERS, ROWS, WORD_LENGTHS

CELLS = IMAGE_SIZE // LETTER_CELL
REACH = 4  # pixels by which a word may stand off its row
SOFTNESSES = (0.3, 1.0, 1.7)  # sigmas in pixels that letters are compared at
MARGIN = 3  # pixels around a cell that a blurred letter reaches into
SIDE = LETTER_CELL + 2 * MARGIN
MIN_ENERGY = 0.35  # squared departure from the ground, summed over pixels and channels, of the faintest letter
MIN_EXPLAINED = 0.6  # share of the departure around a cell that its letter must explain
SURE = 0.9  # the same, of a letter that nothing disturbs


@dataclass(frozen=True)
class InkWord:
    """A word as fitted; `text` has `?` for ink that is no letter.

    Args:
        mask: float (64, 64), its letters' coverage.
        cover: the same, with what `?` looks most like.
        color: (3,), the ink's colour less the ground's.
        softness: sigma in pixels of the blur at which it fits best.
        is_sure: whether every letter explains nearly all that stands in its cell.
    """

    text: str
    row: str
    mask: np.ndarray
    cover: np.ndarray
    color: np.ndarray
    softness: float
    is_sure: bool


class Fitted(NamedTuple):
    """Squared departure that each letter explains, (rows, columns, CELLS, softnesses, letters), and that is present."""

    explained: np.ndarray
    present: np.ndarray


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


def _windows(departure: np.ndarray, top: int, rows: Sequence[int], columns: Sequence[int]) -> np.ndarray:
    """What surrounds every cell of a row at each of these shifts, (3, rows, columns, CELLS, SIDE**2)."""
    margin = MARGIN + REACH + 2
    padded = np.pad(departure.transpose(2, 0, 1), ((0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (SIDE, SIDE), (1, 2))
    lefts = np.add.outer(np.asarray(columns) + REACH + 2, LETTER_CELL * np.arange(CELLS))
    chosen = windows[:, (top + REACH + 2 + np.asarray(rows))[:, None, None], lefts]
    return chosen.reshape(3, len(rows), len(columns), CELLS, SIDE * SIDE)


def _fitted(departure: np.ndarray, top: int, rows: Sequence[int], columns: Sequence[int]) -> Fitted:
    """How well letters fit every cell at each of these shifts."""
    windows = _windows(departure, top, rows, columns)
    explained = sum(np.square(channel @ _basis().T) for channel in windows)
    explained /= np.stack([_visible(top, row) for row in rows])[:, None, None]
    present = (np.square(windows) @ _inside()).sum(0)
    return Fitted(explained.reshape(*present.shape, len(SOFTNESSES), len(LETTERS)), present)


def _best_shift(fitted: Fitted) -> tuple[int, int, int]:
    """One shift (y, x) and one blur for the whole word: those that explain most, less what they leave."""
    gain = np.maximum(2 * fitted.explained.max(-1) - fitted.present[..., None], 0).sum(2)
    dy, dx, blur = np.unravel_index(gain.argmax(), gain.shape)
    return int(dy), int(dx), int(blur)


def read_row(departure: np.ndarray, row: str) -> InkWord | None:
    """The word on one row, from what departs from the ground, float32 (64, 64, 3); None where no letter stands."""
    top = ROWS[row]
    if not _anything(departure[top : top + LETTER_CELL]):
        return None
    shifts = range(-REACH, REACH + 1, 2)
    dy, dx, _ = _best_shift(_fitted(departure, top, shifts, shifts))
    rows, columns = (range(shifts[i] - 2, shifts[i] + 3) for i in (dy, dx))
    fine = _fitted(departure, top, rows, columns)
    dy, dx, blur = _best_shift(fine)
    around = fine.explained[max(dy - 1, 0) : dy + 2, max(dx - 1, 0) : dx + 2, :, blur].max((0, 1))
    explained, energy = around.max(-1), fine.present[dy, dx]
    length = _length(explained, energy)
    if length < min(WORD_LENGTHS) or explained[:length].sum() < MIN_EXPLAINED * energy[:length].sum():
        return None
    is_letter = explained >= MIN_EXPLAINED * energy
    guess = "".join(LETTERS[int(around[i].argmax())] for i in range(length))
    text = "".join(letter if sure else "?" for letter, sure in zip(guess, is_letter, strict=False))
    places = [(LETTER_CELL * i + columns[dx], top + rows[dy]) for i in range(length)]
    mask, cover = (_mask_of(letters, places, SOFTNESSES[blur]) for letters in (text, guess))
    color = np.einsum("yx,yxc->c", mask, departure) / float((mask**2).sum())
    is_sure = bool((explained[:length] >= SURE * energy[:length]).all())
    return InkWord(text, row, mask, cover, color, _softness(departure, text, places, color), is_sure)


@cache
def _visible(top: int, shift: int) -> np.ndarray:
    """How much of each letter at each blur is in the picture where its row is shifted down: (softnesses * letters,)."""
    rows = top + shift - MARGIN + np.arange(SIDE)
    is_in = np.repeat((rows >= 0) & (rows < IMAGE_SIZE), SIDE)
    return np.maximum(np.square(_basis()) @ is_in.astype(np.float32), 0.3)


@cache
def _inside() -> np.ndarray:
    """1 in a cell and the pixels around it, 0 in the rest of its margin, where shadows of shapes fall: (SIDE**2,)."""
    return np.pad(np.ones((LETTER_CELL + 2,) * 2, dtype=np.float32), MARGIN - 1).ravel()


def _anything(band: np.ndarray) -> bool:
    """Whether more than noise stands in any cell-sized part of a band, (16, 64, 3)."""
    energy = (ndimage.gaussian_filter(band, (1, 1, 0)) ** 2).sum((0, 2))
    return bool(ndimage.uniform_filter1d(energy, LETTER_CELL).max() * LETTER_CELL > 0.3 * MIN_ENERGY)


def _length(explained: np.ndarray, energy: np.ndarray) -> int:
    """How many cells from the left on hold about as much ink as the clearest letter; both (CELLS,)."""
    clearest = explained[explained >= MIN_EXPLAINED * energy].max(initial=0)
    if clearest < MIN_ENERGY:
        return 0
    empty = explained < 0.15 * clearest
    return int(empty.argmax()) if empty.any() else CELLS


def _mask_of(text: str, places: list[tuple[int, int]], softness: float) -> np.ndarray:
    """Coverage of letters whose cells' upper left corners stand at these (x, y), float (64, 64)."""
    margin = MARGIN + REACH + 2
    canvas = np.zeros((IMAGE_SIZE + 2 * margin,) * 2, dtype=np.float32)
    for letter, (x, y) in zip(text, places, strict=True):
        if letter != "?":
            area = canvas[y + REACH + 2 : y + REACH + 2 + SIDE, x + REACH + 2 : x + REACH + 2 + SIDE]
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


def read_words(departure: np.ndarray) -> list[InkWord]:
    """The words on both rows; rows without a letter are left out."""
    words = (read_row(departure.astype(np.float32), row) for row in ROWS)
    return [word for word in words if word]
