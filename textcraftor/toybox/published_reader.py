"""The second judge of letters: a published reader, made for photographs and documents, that has never seen a toybox.

PP-OCRv6 tiny reads the rows on which both worlds write; it may only answer in capitals, for the worlds have no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from textcraftor.rewards.reading import Recogniser
from textcraftor.rewards.recognisers import PUBLISHED, load_recogniser
from textcraftor.toybox.world2.scenes import LETTER_CELL, LETTERS, ROWS

BATCH = 32  # rows at a time


@cache
def reader(alphabet: str | None = LETTERS) -> Recogniser:
    """PP-OCRv6 tiny, on the CPU; None: free to read any of its 6,905 characters."""
    return load_recogniser(str(PUBLISHED), alphabet)


@torch.no_grad()
def read_rows(rows: Tensor, alphabet: str | None = LETTERS) -> list[str]:
    """What stands on each row, `float (rows, 3, 16, 64)` in [0, 1]."""
    known = reader(alphabet)
    return [text for part in rows.split(BATCH) for text in known.read(known.encode(known.pixels(part)))]


def agreement(wanted: str, text: str) -> float:
    """1 - edit distance / length of the longer text, in [0, 1]."""
    return Levenshtein.normalized_similarity(wanted, text)


def share_read(images: Tensor, wanted: Sequence[tuple[str | None, str | None]]) -> np.ndarray:
    """How much of each picture's word the reader reads, see `agreement`; NaN where none is wanted.

    Args:
        images: shape (batch, 3, 64, 64) in [0, 1].
        wanted: each picture's word and the row on which it shall stand; without a row the better of the two counts.
    """
    shares = np.full(len(wanted), np.nan)
    places = [(i, ROWS[name]) for i, (word, row) in enumerate(wanted) if word for name in ([row] if row else ROWS)]
    if not places:
        return shares
    pixels = images.detach().float().cpu()
    texts = read_rows(torch.stack([pixels[i, :, top : top + LETTER_CELL] for i, top in places]))
    for (i, _), text in zip(places, texts, strict=True):
        shares[i] = np.fmax(shares[i], agreement(wanted[i][0] or "", text))
    return shares
