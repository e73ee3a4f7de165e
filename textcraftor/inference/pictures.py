"""Tensors to picture files: PNGs that say how they were made, and contact sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor


def to_pil(image: Float[Tensor, "3 height width"]) -> Image.Image:
    """A picture in [0, 1] as 8-bit RGB."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def contact_sheet(rows: Sequence[Sequence[Image.Image]], gap: int = 4, min_side: int = 128) -> Image.Image:
    """Pictures in rows on white; small ones are enlarged by whole pixels so that they can be looked at."""
    scale = max(1, min_side // rows[0][0].height)
    width, height = rows[0][0].width * scale, rows[0][0].height * scale
    sheet = Image.new("RGB", (len(rows[0]) * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (x * (width + gap), y * (height + gap)))
    return sheet


def save_png(image: Float[Tensor, "3 height width"], path: Path, said: Mapping[str, object]) -> None:
    """Write a picture with what made it as PNG text chunks."""
    info = PngInfo()
    for key, value in said.items():
        info.add_itxt(key, str(value))
    to_pil(image).save(path, pnginfo=info)
