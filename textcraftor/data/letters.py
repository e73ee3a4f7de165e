"""Pictures of text, with captions that say what is written: the synthetic data of "Improving Text Generation on Images
with Synthetic Captions" (2406.00505)."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm.auto import tqdm

from textcraftor.config.making import made
from textcraftor.errors import UsageError
from textcraftor.files.pictures import to_rgb
from textcraftor.files.reading import open_picture
from textcraftor.files.writing import check_unfinished, finish, locked, replacing, write_json, write_text
from textcraftor.models.seeds import run_rng

Painter = Callable[[str, str, np.random.Generator], tuple[Image.Image, str, str]]
KINDS = ("word", "number", "series")
WORDS = re.findall(
    r"\w+",
    """open closed exit welcome sale coffee hotel stop menu hello love dream happy birthday summer winter garden market
    bakery library museum station airport school music pizza fresh organic today tomorrow danger warning push pull""",
)
COLORS = {
    "black": "#101010",
    "white": "#fafafa",
    "red": "#c62828",
    "blue": "#1e4fa3",
    "green": "#2e7d32",
    "yellow": "#f9d423",
    "orange": "#ef6c00",
    "purple": "#6a1b9a",
    "gray": "#8a8a8a",
}
SIZES = {"small": 0.35, "medium": 0.6, "large": 0.85}  # of the picture's width
PLACES = {"at the top": 0.2, "in the center": 0.5, "at the bottom": 0.8}  # of the picture's height


@dataclass(frozen=True)
class Texts:
    """Draws what is to be written.

    Args:
        share: of words, numbers and random series of letters.
        words: a text file of them, one a line; null takes common words of signs.
        alphabet: of series.
        length: least and most signs of numbers and series.
    """

    share: Mapping[str, float]
    words: str | None = None
    alphabet: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    length: Sequence[int] = (2, 8)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.share) - set(KINDS))
        if unknown or not sum(self.share.values()) > 0 or min(self.share.values()) < 0:
            raise UsageError(f"texts.share={dict(self.share)} must give {', '.join(KINDS)} shares of at least 0")
        if not 1 <= self.length[0] <= self.length[1]:
            raise UsageError(f"texts.length={list(self.length)} must be least and most, at least 1")
        if self.words is not None and not Path(self.words).expanduser().is_file():
            raise UsageError(f"texts.words={self.words} does not exist: give a text file, one word a line")

    @functools.cached_property
    def known(self) -> list[str]:
        lines = WORDS if self.words is None else Path(self.words).expanduser().read_text(encoding="utf-8").split()
        return [form for word in lines for form in (word, word.upper(), word.capitalize())]

    def draw(self, rng: np.random.Generator) -> tuple[str, str]:
        """The kind of text, and the text."""
        names = list(self.share)
        kind = str(rng.choice(names, p=np.array([self.share[name] for name in names]) / sum(self.share.values())))
        length = int(rng.integers(self.length[0], self.length[1] + 1))
        match kind:
            case "word":
                return kind, str(rng.choice(self.known))
            case "number":
                return kind, "".join(str(digit) for digit in rng.integers(10, size=length))
            case _:
                return kind, "".join(rng.choice(list(self.alphabet), size=length))


@dataclass(frozen=True)
class FontPainter:
    """Writes with fonts, on a plain ground or on a picture of a folder.

    Args:
        height, width: in pixels.
        fonts: TrueType or OpenType files; none takes Pillow's own.
        backgrounds: a folder of pictures; null: plain grounds alone.
        found: share of pictures on `backgrounds`, where there are some.
    """

    height: int
    width: int
    fonts: Sequence[str] = ()
    backgrounds: str | None = None
    found: float = 0.5

    def __post_init__(self) -> None:
        for path in (*self.fonts, *([self.backgrounds] if self.backgrounds else [])):
            if not Path(path).expanduser().exists():
                raise UsageError(f"painter: {path} does not exist")

    @functools.cached_property
    def pictures(self) -> list[Path]:
        if self.backgrounds is None:
            return []
        files = sorted(Path(self.backgrounds).expanduser().rglob("*"))
        return [file for file in files if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")]

    def __call__(self, kind: str, text: str, rng: np.random.Generator) -> tuple[Image.Image, str, str]:
        """The picture, its basic caption, and the detailed one: colour, size, style and place."""
        ground, ink = (str(name) for name in rng.choice(list(COLORS), 2, replace=False))
        size, place = str(rng.choice(list(SIZES))), str(rng.choice(list(PLACES)))
        picture = Image.new("RGB", (self.width, self.height), COLORS[ground])
        where = f"a plain {ground} background"
        if self.pictures and rng.random() < self.found:
            with open_picture(self.pictures[int(rng.integers(len(self.pictures)))]) as background:
                picture = ImageOps.fit(to_rgb(background, upright=True), picture.size)
            where = "a photo"
        path = str(rng.choice(list(self.fonts))) if self.fonts else None
        font, style = self._font(path, text, SIZES[size] * self.width)
        middle = (self.width / 2, PLACES[place] * self.height)
        ImageDraw.Draw(picture).text(middle, text, fill=COLORS[ink], font=font, anchor="mm")
        named = {"word": "text", "number": "number", "series": "random letters"}[kind]
        return (
            picture,
            f'a picture with the {named} "{text}"',
            f'the {named} "{text}" in {size} {ink} letters{style} {place} of {where}',
        )

    def _font(self, path: str | None, text: str, wide: float):
        """The font in which the text is as wide as asked, or as high as fits, and what to call it."""

        def of(size: float):
            return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)

        measured = of(100.0).getbbox(text)
        size = min(100.0 * wide / max(1, measured[2] - measured[0]), 0.3 * self.height)
        font = of(max(6.0, size))
        family, face = font.getname() if path else (None, None)
        return font, f" of {family} {face}" if family else ""


def coverage(counts: Counter[str], alphabet: str) -> str:
    """How often each sign was written, in one line."""
    missing = "".join(sorted(set(alphabet) - set(counts)))
    least = min(((counts[sign], sign) for sign in alphabet if sign in counts), default=(0, ""))
    line = f"{len(counts)} different signs"
    line += f", of the alphabet the rarest is {least[1]}, {least[0]} times" if least[1] else ""
    return line + (f"; never written: {missing}" if missing else "")


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot work before anything is written."""
    check_unfinished(folder, "pictures")
    made(config.model.letters.texts)
    made(config.model.letters.painter)


def run(config: DictConfig, folder: Path) -> str:
    """Write a data set: pictures, `metadata.jsonl`, and `coverage.json`, how often each sign was written."""
    check(config, folder)
    with locked(folder):
        return make(config, folder)


def make(config: DictConfig, folder: Path) -> str:
    """The same, once nobody else writes there."""
    texts, paint = made(config.model.letters.texts), made(config.model.letters.painter)
    counts, lines = Counter[str](), []
    for index in tqdm(range(config.count), desc="writing", unit="picture"):
        rng = run_rng(config.seed, index)
        kind, text = texts.draw(rng)
        picture, basic, detailed = paint(kind, text, rng)
        with replacing(folder / f"{index:06d}.png") as partial:
            picture.save(partial)
        counts.update(text)
        row = {"file_name": f"{index:06d}.png", "caption": basic, "quoted": [text], "kind": kind}
        lines.append(json.dumps(row | {"synthetic": [{"kind": "descriptive", "text": detailed}]}, ensure_ascii=False))
    write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")
    write_json(folder / "coverage.json", dict(sorted(counts.items())))
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    finish(folder, "letters")
    return f"wrote {folder}: {config.count} pictures of text; {coverage(counts, texts.alphabet)}"
