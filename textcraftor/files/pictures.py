"""Pictures of every kind that files hold, as RGB of 8 bits a channel."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
from PIL import Image, ImageOps

MOST_LEVEL = 2**16 - 1


def to_rgb(picture: Image.Image, upright: bool = False) -> Image.Image:
    """A picture's first frame in RGB: what is transparent shows a white ground, of 16 bits the upper 8 are taken.

    Args:
        upright: turned as its EXIF orientation says, as people see it; published scorers do not turn it.

    Raises:
        ValueError: its levels have no known white (floating-point numbers, or beyond 16 bits).
        OSError, SyntaxError: it is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on EXIF data and palettes that it can read all the same
        picture.load()
        if upright:
            with contextlib.suppress(SyntaxError, ValueError, LookupError, TypeError):  # of EXIF data that are damaged
                picture = ImageOps.exif_transpose(picture)
        if picture.mode == "F" or picture.mode.startswith("I"):
            return _of_16_bits(picture)
        if not picture.has_transparency_data:
            return picture.convert("RGB")
        shown = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")


def _of_16_bits(picture: Image.Image) -> Image.Image:
    """A grey picture whose levels go up to 65,535, which Pillow would cut at 255."""
    levels = np.asarray(picture)
    if picture.mode == "F":
        raise ValueError("its levels are floating-point numbers, with no known white: save it with 8 or 16 bits")
    if levels.min() < 0 or levels.max() > MOST_LEVEL:
        raise ValueError(f"its levels lie outside 0 to {MOST_LEVEL}: save it with 8 or 16 bits")
    levels = np.where(levels == picture.info.get("transparency"), MOST_LEVEL, levels)
    return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
