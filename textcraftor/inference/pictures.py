"""Tensors to picture files: PNGs that say how they were made, contact sheets, and addresses that hold a picture."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from textcraftor.files.writing import replacing

CAPTION_LINE, CAPTION_LETTER = 12, 6  # pixels, of Pillow's built-in font


def to_pil(image: Tensor) -> Image.Image:
    """A picture (3, height, width), of 8 bits or in [0, 1], as RGB."""
    pixels = image if image.dtype == torch.uint8 else (image.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def cell_width(picture: Image.Image, min_side: int = 128) -> int:
    """How wide a contact sheet shows a picture, in pixels."""
    return picture.width * max(1, min_side // picture.height)


def wrapped(text: str, width: int, most: int = 3) -> str:
    """A caption in lines of at most `width` pixels, at most so many of them."""
    letters = max(10, width // CAPTION_LETTER)
    return "\n".join(textwrap.wrap(text, letters, max_lines=most, placeholder=" ..."))


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    captions: Sequence[Sequence[str]] | None = None,
    gap: int = 4,
    min_side: int = 128,
) -> Image.Image:
    """Pictures in rows on white, each above its caption; small ones are enlarged by whole pixels to be looked at."""
    scale = max(1, min_side // rows[0][0].height)
    width, height = rows[0][0].width * scale, rows[0][0].height * scale
    lines = max((text.count("\n") + 1 for row in captions for text in row), default=0) if captions else 0
    across, down = width + gap, height + gap + lines * CAPTION_LINE
    sheet = Image.new("RGB", (len(rows[0]) * across - gap, len(rows) * down - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (x * across, y * down))
            if captions:
                draw.multiline_text((x * across, y * down + height), captions[y][x], "black", spacing=1)
    return sheet


def save_png(image: Tensor, path: Path, metadata: Mapping[str, object]) -> None:
    """Write a picture, as `to_pil` takes it, with what made it as PNG text chunks."""
    info = PngInfo()
    for key, value in metadata.items():
        info.add_itxt(key, str(value))
    with replacing(path) as partial:
        to_pil(image).save(partial, pnginfo=info)


def data_url(content: bytes, kind: str) -> str:
    """An address that holds a picture's bytes, for pages in one file."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def png_url(picture: Image.Image, **options: object) -> str:
    """The same of a PNG of the pixels alone, without what a file says of how it was made.

    Args:
        options: of Pillow's writer; unless given, the smallest file.
    """
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **(options or {"optimize": True}))
    return data_url(buffer.getvalue(), "png")
