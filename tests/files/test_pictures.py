"""Every kind of picture gives the RGB that people see; what is too large is refused by name, without a warning."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from textcraftor.data.records import Records
from textcraftor.errors import UsageError
from textcraftor.evaluation.score import load_picture
from textcraftor.files.pictures import to_rgb
from textcraftor.files.reading import open_picture

RED, WHITE, PINK = [255, 0, 0], [255, 255, 255], [255, 127, 127]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(color: int, *levels: int, bits: int = 16, width: int = 3, extra: bytes = b"", after: bytes = b"") -> bytes:
    """A row of pixels, written by hand: Pillow writes no colours of 16 bits."""
    row = b"\0" + b"".join(struct.pack(">H" if bits == 16 else ">B", level) for level in levels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, color, 0, 0, 0))
    body = extra + chunk(b"IDAT", zlib.compress(row)) + after
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def saved(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    written = io.BytesIO()
    picture.save(written, format, **options)
    return written.getvalue()


def palette(**options) -> bytes:
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 255, 0, 255, 0, 0])
    picture.putdata([0, 1])
    return saved(picture, **options)


def frames() -> bytes:
    return saved(
        Image.new("RGB", (1, 1), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (1, 1), "blue")]
    )


def levels(values: list[int], dtype: type) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=dtype))


KINDS = {
    "16 bits of grey": (png(0, 0, 32768, 65535), [[0] * 3, [128] * 3, [255] * 3]),
    "16 bits of grey, one level transparent": (
        png(0, 0, 9, 65535, extra=chunk(b"tRNS", b"\0\0")),
        [WHITE, [0] * 3, WHITE],
    ),
    "16 bits of colour": (png(2, 65535, 0, 32768, 0, 0, 65535, 256, 512, 0), [[255, 0, 128], [0, 0, 255], [1, 2, 0]]),
    "16 bits with alpha": (png(6, 65535, 0, 0, 65535, 65535, 0, 0, 0, 65535, 0, 0, 32768), [RED, WHITE, PINK]),
    "16 bits of grey with alpha": (png(4, 0, 65535, 0, 0, 32768, 65535), [[0] * 3, WHITE, [128] * 3]),
    "I;16 of a TIFF": (saved(levels([0, 32768, 65535], np.uint16), "TIFF"), [[0] * 3, [128] * 3, [255] * 3]),
    "I of a TIFF": (saved(levels([0, 32768, 65535], np.int32), "TIFF"), [[0] * 3, [128] * 3, [255] * 3]),
    "a palette": (palette(), [[0, 255, 0], RED]),
    "a palette with a transparent colour": (palette(transparency=0), [WHITE, RED]),
    "a palette with alpha": (palette(transparency=bytes([255, 128])), [[0, 255, 0], PINK]),
    "alpha": (saved(Image.new("RGBA", (1, 1), (255, 0, 0, 128))), [PINK]),
    "invisible": (saved(Image.new("RGBA", (1, 1), (255, 0, 0, 0)), "WEBP", lossless=True), [WHITE]),
    "grey with alpha": (saved(Image.new("LA", (1, 1), (0, 0))), [WHITE]),
    "grey with a transparent level": (saved(Image.new("L", (1, 1), 7), transparency=7), [WHITE]),
    "one bit": (saved(Image.fromarray(np.array([[True, False]]))), [WHITE, [0] * 3]),
    "CMYK": (saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [RED]),
    "animated": (frames(), [RED]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_gives_the_colours_that_people_see(kind, tmp_path):
    """The same pixels for training and for scoring; half-transparent red on white is pink, not red on black."""
    stored, wanted = KINDS[kind]
    (tmp_path / "a.bin").write_bytes(stored)
    with open_picture(tmp_path / "a.bin") as opened:
        picture = to_rgb(opened)
    assert picture.mode == "RGB"
    assert np.abs(np.array(picture)[0].astype(int) - wanted).max() <= 1
    assert torch.equal(
        (load_picture(tmp_path / "a.bin") * 255).round().byte(), torch.tensor(np.array(picture)).permute(2, 0, 1)
    )


def test_levels_without_a_known_white_are_refused():
    for picture in (levels([0, 1], np.float32), levels([0, 65536], np.int32), levels([-1, 5], np.int32)):
        with pytest.raises(ValueError, match="save it with 8 or 16 bits"):
            to_rgb(picture)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_turned_upright_to_learn_from_and_stay_as_stored_to_be_scored(format, tmp_path):
    """A camera held upside down: the stored top is blue, people see red on top."""
    stored = Image.new("RGB", (16, 16), "red")
    stored.paste("blue", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3
    stored.save(tmp_path / "a.bin", format, exif=exif)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.bin", "caption": "red above blue"}\n')
    learned, scored = Records.read(tmp_path).picture(0), load_picture(tmp_path / "a.bin")
    assert learned.getpixel((8, 1))[0] > 200
    assert learned.getpixel((8, 14))[2] > 200
    assert scored[2, 1, 8] > 0.8
    assert scored[0, 14, 8] > 0.8


def text_chunk() -> bytes:
    return chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 2**23))


HUGE = {
    "a text of 8 MB": (png(0, 1, 2, 3, bits=8, extra=text_chunk()), "too large"),
    "a text of 8 MB behind the pixels": (png(0, 1, 2, 3, bits=8, after=text_chunk()), "too large"),
    "144 million pixels": (png(0, bits=8, width=144_000_000), "144000000 x 1 pixels, more than 134,217,728: shrink it"),
    "400 million pixels": (png(0, bits=8, width=400_000_000), "more than 134,217,728 pixels: shrink it"),
    "nothing": (b"", "is no picture that can be read: mend it"),
    "half a picture": (saved(Image.effect_noise((64, 64), 50))[:900], "is damaged .*: mend it"),
}


@pytest.mark.parametrize("kind", HUGE)
def test_what_is_too_large_is_refused_by_name(kind, tmp_path):
    """In data sets and where pictures are scored, in one line; warnings are errors here."""
    stored, why = HUGE[kind]
    file: Path = tmp_path / "a.png"
    file.write_bytes(stored)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "x"}\n')
    with pytest.raises(UsageError, match=f"a.png .*{why}"):
        load_picture(file)
    with pytest.raises(OSError, match=f"a.png .*{why}"):
        Records.read(tmp_path).picture(0)
