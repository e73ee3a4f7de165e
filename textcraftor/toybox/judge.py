"""Reads a picture back with the world's own palette, shapes and font, and says what it really shows.

Nothing here is learned from this world, and training never calls it: rewards are proxies, the judge is the truth. The
figure `read` alone is a published reader's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage
from torch import Tensor

from textcraftor.toybox.published_reader import share_read
from textcraftor.toybox.render import ink_on, letter_mask, shape_mask
from textcraftor.toybox.scenes import (
    COLORS,
    GROUNDS,
    IMAGE_SIZE,
    LETTER_CELL,
    LETTERS,
    PLACES,
    SHAPES,
    SIZES,
    Word,
    center_of,
    colors_on,
)
from textcraftor.toybox.scenes import Shape as SceneShape
from textcraftor.toybox.world2.scenes import ROWS
from textcraftor.toybox.world2.wanted import Wanted, WantedShape, parse  # both worlds state facts in the same words

GROUND_TOLERANCE = 60.0  # 8-bit RGB distance within which a pixel counts as ground
COLOR_TOLERANCE = 60.0  # 8-bit RGB distance from the line between the ground's colour and a shape's
MIN_AREA = 30  # pixels below which a patch of colour is no shape
MIN_OVERLAP = 0.62  # intersection over union with a shape's mask
MIN_LETTER = 0.72  # correlation with a letter's mask
WINDOW = 31  # pixels around a patch within which shapes are compared


@dataclass(frozen=True)
class SeenShape:
    """A shape read from a picture; x and y are its centre in pixels."""

    color: str
    shape: str
    size: str
    x: float
    y: float
    area: int


@dataclass(frozen=True)
class Reading:
    """What a picture shows. `ground_noise` is the standard deviation of the ground's pixels in [0, 1];
    `stray` the share of pixels that are neither clean ground, nor ink, nor inside a shape that was read."""

    ground: str | None
    shapes: tuple[SeenShape, ...]
    words: dict[str, str]
    ground_noise: float
    stray: float


def _coverage(pixels: np.ndarray, ground: np.ndarray, color: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel lies on the way from the ground's colour to another, and how far off that line."""
    line = color - ground
    share = np.clip((pixels - ground) @ line / (line @ line), 0, 1)
    return share, np.linalg.norm(pixels - ground - share[..., None] * line, axis=-1)


@cache
def _shape_templates() -> tuple[list[tuple[str, int]], np.ndarray]:
    """Every (shape, radius), also those between and beside the world's two sizes, and its mask, (count, WINDOW**2)."""
    kinds = list(itertools.product(SHAPES, range(min(SIZES.values()) - 1, max(SIZES.values()) + 2)))
    masks = [shape_mask(shape, radius) > 0.5 for shape, radius in kinds]
    return kinds, np.stack([np.pad(mask, (WINDOW - len(mask)) // 2).ravel() for mask in masks]).astype(np.float32)


def _match(patch: np.ndarray) -> tuple[float, str, str, float, float]:
    """The best (overlap, shape, size, x, y) for one connected patch of a colour, bool (64, 64)."""
    kinds, templates = _shape_templates()
    ys, xs = np.nonzero(patch)
    middle = round((xs.min() + xs.max()) / 2), round((ys.min() + ys.max()) / 2)
    padded = np.pad(patch, WINDOW // 2 + 1).astype(np.float32)
    offsets = list(itertools.product((-1, 0, 1), repeat=2))
    windows = [padded[middle[1] + 1 + dy :, middle[0] + 1 + dx :][:WINDOW, :WINDOW].ravel() for dx, dy in offsets]
    both = np.stack(windows) @ templates.T
    overlap = both / (templates.sum(1) + len(xs) - both)
    offset, kind = np.unravel_index(overlap.argmax(), overlap.shape)
    shape, radius = kinds[kind]
    size = min(SIZES, key=lambda name: abs(SIZES[name] - radius))
    x, y = middle[0] + offsets[offset][0], middle[1] + offsets[offset][1]
    return float(overlap.max()), shape, size, x, y


@cache
def _letter_templates() -> np.ndarray:
    """Every letter's mask, standardised, (letters, 256): a product with them is a correlation."""
    return _standardised(np.stack([letter_mask(letter).ravel() for letter in LETTERS]))


def _standardised(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)


def _read_row(ink: np.ndarray) -> str:
    """The letters of one row of cells, float (16, 64) ink coverage; `?` for ink that is no letter."""
    text = ""
    padded = np.pad(ink, 1)
    for left in range(0, IMAGE_SIZE, LETTER_CELL):
        if ink[:, left : left + LETTER_CELL].sum() < 10:
            break
        shifted = [
            padded[dy : dy + LETTER_CELL, left + dx : left + dx + LETTER_CELL].ravel()
            for dy, dx in itertools.product((0, 1, 2), repeat=2)
        ]
        scores = (_standardised(np.stack(shifted)) @ _letter_templates().T).max(0)
        text += LETTERS[int(scores.argmax())] if scores.max() >= MIN_LETTER else "?"
    return text


def read(picture: np.ndarray) -> Reading:
    """Read a picture, float (64, 64, 3) in [0, 1]."""
    pixels = picture.astype(np.float64) * 255
    distance = {name: np.linalg.norm(pixels - color, axis=-1) for name, color in GROUNDS.items()}
    if np.mean(np.min(list(distance.values()), 0) < GROUND_TOLERANCE) < 0.3:
        return Reading(None, (), dict.fromkeys(ROWS, ""), 1.0, 1.0)
    closest = np.stack(list(distance.values())).argmin(0)
    ground = list(GROUNDS)[np.bincount(closest[np.min(list(distance.values()), 0) < GROUND_TOLERANCE]).argmax()]
    clean = distance[ground] < GROUND_TOLERANCE
    base = np.asarray(GROUNDS[ground], dtype=float)
    names = (*colors_on(ground), "ink")
    palette = [np.asarray(ink_on(ground) if name == "ink" else COLORS[name], dtype=float) for name in names]
    share, off = map(np.stack, zip(*(_coverage(pixels, base, color) for color in palette), strict=True))
    # The line that a pixel is nearest to says which colour it is a shade of.
    nearest = np.where(share > 0.5, off, np.inf)
    label = np.where(nearest.min(0) < COLOR_TOLERANCE, nearest.argmin(0), -1)
    is_ink = label == len(names) - 1
    shapes, known = [], clean | ndimage.binary_dilation(is_ink)
    # An object is a silhouette against the ground; its colour is that of most of its pixels.
    silhouettes, count = ndimage.label(ndimage.binary_opening(~clean & ~is_ink))
    for number in range(1, count + 1):
        own = silhouettes == number
        labels = label[own & (label >= 0)]
        if not len(labels):
            continue
        color = int(np.bincount(labels).argmax())
        patch = ndimage.binary_dilation(own) & ~is_ink & (share[color] > 0.5)
        if patch.sum() < MIN_AREA:
            continue
        overlap, shape, size, x, y = _match(patch)
        if overlap >= MIN_OVERLAP:
            shapes.append(SeenShape(names[color], shape, size, x, y, int(patch.sum())))
            known |= ndimage.binary_dilation(patch, iterations=2)
    ink = np.where((off[-1] < COLOR_TOLERANCE) & ((label == -1) | is_ink), share[-1], 0.0)
    words = {row: _read_row(np.where(ink > 0.15, ink, 0)[top : top + LETTER_CELL]) for row, top in ROWS.items()}
    away = ndimage.binary_erosion(clean, iterations=2)  # from edges, where colours mix by right
    noise = float(pixels[away].std(0).mean() / 255) if away.any() else 1.0
    return Reading(ground, tuple(shapes), words, noise, float(1 - known.mean()))


def _lightness(color: Sequence[int]) -> float:
    """CIE L* in [0, 100] of an 8-bit sRGB colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color)]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * np.cbrt(y) - 16 if y > 0.008856 else 903.3 * y


def taste(reading: Reading) -> dict[str, float]:
    """The world's true aesthetic, each part and their mean in [0, 1], over what prompts leave free.

    balance: 1 - d/20, d the distance in pixels of the shapes' common centre of mass from the picture's middle;
    harmony: CIE L* contrast of shapes and ground, mean over shapes, /60 clipped to 1;
    size: mean over shapes of their area between that of the small and the large edition of their shape;
    clean: exp(-ground_noise/0.03) * exp(-stray/0.05), the ground even and every edge sharp.
    A picture in which no shape can be read has taste 0.
    """
    if not reading.shapes or reading.ground is None:
        return dict.fromkeys(("taste", "balance", "harmony", "size", "clean"), 0.0)
    mass = np.array([shape.area for shape in reading.shapes], dtype=float)
    center = np.array([(shape.x, shape.y) for shape in reading.shapes]).T @ mass / mass.sum()
    ground = _lightness(GROUNDS[reading.ground])
    contrast = [abs(_lightness(COLORS[shape.color]) - ground) / 60 for shape in reading.shapes]
    areas = []
    for shape in reading.shapes:
        small, large = ((shape_mask(shape.shape, SIZES[size]) > 0.5).sum() for size in ("small", "large"))
        areas.append(np.clip((shape.area - small) / (large - small), 0, 1))
    parts = {
        "balance": float(np.clip(1 - np.linalg.norm(center - IMAGE_SIZE / 2) / 20, 0, 1)),
        "harmony": float(np.mean(np.minimum(contrast, 1))),
        "size": float(np.mean(areas)),
        "clean": float(np.exp(-reading.ground_noise / 0.03) * np.exp(-reading.stray / 0.05)),
    }
    return {"taste": float(np.mean(list(parts.values()))), **parts}


def place_of(seen: SeenShape, row: str | None) -> str:
    word = Word("", row) if row else None
    offsets = {
        place: np.hypot(*np.subtract(center_of(SceneShape("", "", "", place), word), (seen.x, seen.y)))
        for place in PLACES
    }
    return min(offsets, key=offsets.__getitem__)


def _shape_facts(wanted: WantedShape, seen: SeenShape | None, row: str | None) -> dict[str, bool]:
    """Which of the facts that a prompt states about one shape hold for a shape that was read."""
    facts = {"color": seen is not None and seen.color == wanted.color}
    facts["shape"] = facts["color"] and seen is not None and seen.shape == wanted.shape
    if wanted.size:
        facts["size"] = facts["color"] and seen is not None and seen.size == wanted.size
    if wanted.place:
        facts["place"] = facts["color"] and seen is not None and place_of(seen, row) == wanted.place
    return facts


def check(wanted: Wanted, reading: Reading) -> list[tuple[str, bool]]:
    """Each fact of a prompt with whether the picture shows it: colour, shape, size and place of every shape
    (the last three only of a shape in the right colour), their number, the ground, the word's row."""
    row = max(reading.words, key=lambda name: len(reading.words[name]))
    row_read = row if reading.words[row] else None
    seen: list[SeenShape | None] = [*reading.shapes, *[None] * len(wanted.shapes)]
    # Shapes are told apart by the assignment that grants the prompt most facts.
    options = (
        [_shape_facts(want, got, row_read) for want, got in zip(wanted.shapes, chosen, strict=True)]
        for chosen in itertools.permutations(seen[: len(wanted.shapes) + 4], len(wanted.shapes))
    )
    best = max(options, key=lambda option: sum(sum(facts.values()) for facts in option))
    facts = [(name, held) for shape in best for name, held in shape.items()]
    if wanted.shapes:
        facts.append(("number", len(reading.shapes) == len(wanted.shapes)))
    if wanted.ground:
        facts.append(("ground", reading.ground == wanted.ground))
    if wanted.row:
        facts.append(("row", row_read == wanted.row))
    return facts


def letters(wanted: Wanted, reading: Reading) -> float:
    """The share of the word's letters that stand in their place; letters too many count against it.
    NaN where the prompt wants no word. Without a wanted row the better of the two counts."""
    if not wanted.word:
        return float("nan")
    rows = [wanted.row] if wanted.row else list(ROWS)
    return max(
        sum(a == b for a, b in zip(wanted.word, reading.words[row], strict=False))
        / max(len(wanted.word), len(reading.words[row]))
        for row in rows
    )


@dataclass
class Judge:
    """The measure that configuration names: `judge(images, prompts)` gives one figure per name and picture."""

    parts: bool = False  # also the parts of taste and each kind of fact

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Args: images, shape (batch, 3, 64, 64) in [0, 1]. Returns arrays (batch,), NaN where a prompt
        states nothing to judge by."""
        pictures = images.detach().float().permute(0, 2, 3, 1).cpu().numpy()
        wanted = [parse(prompt) for prompt in prompts]
        rows = [self._one(picture, own) for picture, own in zip(pictures, wanted, strict=True)]
        found = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        return found | {"read": share_read(images, [(own.word, own.row) for own in wanted])}

    def _one(self, picture: np.ndarray, wanted: Wanted) -> dict[str, float]:
        reading = read(picture)
        facts = check(wanted, reading)
        row = {
            "faithfulness": float(np.mean([held for _, held in facts])) if facts else float("nan"),
            "letters": letters(wanted, reading),
            **taste(reading),
        }
        for kind in ("color", "shape", "size", "place", "number", "ground", "row"):
            held = [value for name, value in facts if name == kind]
            row[f"fact_{kind}"] = float(np.mean(held)) if held else float("nan")
        return row if self.parts else {name: row[name] for name in ("faithfulness", "letters", "taste")}
