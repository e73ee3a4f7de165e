"""The pictures and prompts that every scorer is compared on: real PNG files, made the same on every machine."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from textcraftor.toybox.render import render
from textcraftor.toybox.scenes import sample_scene

PROMPTS = (
    "a portrait of a navy officer in front of a flag",
    "a woman in uniform, “curly quotes” and an apostrophe’s tail…",
    "salt &amp; pepper on a table &lt;3",
    "a red circle and a blue star with the word KKQ, " + "highly detailed, trending, " * 40,
    "two shapes on a green ground",
    'a   poster with  the text "HELLO, WORLD!" 2026',
    "a smooth sunset gradient",
    "Gewürz, naïve café: 雪 😀",
)
TOKEN_PROMPTS = (
    *PROMPTS,
    "",
    "   leading and trailing   ",
    "UPPER lower MiXeD",
    "it's we'll they've I'm don't",
    "&amp;amp; twice &quot;quoted&quot; &#39;n&#39;",
    "‘single’ «guillemets» – en — em",
    "tab\tnew\nline",
    "1234567890 3.14 #hashtag @name_with_underscore",
    "ﬁ ligature, full-width ＡＢＣ, e\u0301 combining",
    "mojibake: sÃ£o paulo â€œquotesâ€\x9d",
    "[ENC] [DEC] [CLS] <|endoftext|> and after",
)


def parti_prompts(file: Path) -> list[str]:
    """The column Prompt of Parti-Prompts, or nothing where the file is absent."""
    if not file.exists():
        print(f"{file} is absent: tokens are compared on {len(TOKEN_PROMPTS)} prompts only")
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return [row["Prompt"] for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise at several scales, with full contrast."""
    total = np.zeros((height, width, 3))
    for cell in (1, 4, 16, 64):
        coarse = rng.random((-(-height // cell), -(-width // cell), 3))
        total += np.kron(coarse, np.ones((cell, cell, 1)))[:height, :width]
    return (255 * (total - total.min()) / np.ptp(total)).astype(np.uint8)


def gradient(height: int, width: int) -> np.ndarray:
    """Smooth ramps, one direction a channel."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (255 * np.stack([x, y, (np.sin(6 * x) * np.cos(5 * y) + 1) / 2], -1)).astype(np.uint8)


def draw() -> list[Image.Image]:
    """Eight pictures, one for each prompt: a photo in several crops, scenes, a ramp, a texture."""
    photo = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    rng = np.random.default_rng(0)
    drawn = [render(sample_scene(rng, word_probability=1.0)) for _ in range(2)]
    scenes = [Image.fromarray((255 * np.asarray(scene)).round().astype(np.uint8)) for scene in drawn]
    return [
        photo.crop((0, 0, 512, 512)),
        photo,
        photo.crop((0, 20, 512, 539)),  # 512 x 519: three rows too many after resizing, where centre crops differ
        scenes[0].resize((512, 512), Image.Resampling.NEAREST),
        scenes[1].resize((768, 512), Image.Resampling.LANCZOS),
        photo.crop((150, 60, 350, 220)),  # 200 x 160: is enlarged
        Image.fromarray(gradient(512, 512)),
        Image.fromarray(texture(rng, 480, 643)),
    ]


def write(folder: Path, pictures: list[Image.Image]) -> list[str]:
    """The pictures as PNG files; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index}.png" for index in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    return [str(path) for path in paths]
