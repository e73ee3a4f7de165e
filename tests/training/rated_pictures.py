"""Pictures of two models and what people who like the dark answered about them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.evaluation.test_rating import rated
from textcraftor.evaluation.choosing import pair_units
from textcraftor.evaluation.picture_sets import PictureSet, read_sets
from textcraftor.evaluation.rating import FILE, Unit, add, begin

SHAPES = ("circle", "star", "cross", "square")
PROMPTS = tuple(f"a {color} {shape}" for color, shape in itertools.product(("red", "blue", "green"), SHAPES))
MODELS = ("base", "tuned")
Answer = Callable[[float, float], str]  # from both pictures' lightness, in [0, 1]


def likes_dark(left: float, right: float) -> str:
    return "left" if left < right else "right"


def make_pictures(folder: Path, rng: np.random.Generator, light: np.ndarray) -> None:
    """As `generate` writes them: each of one colour, light or dark.

    Args:
        light: whether each is, (prompts, seeds).
    """
    folder.mkdir(parents=True)
    lines = []
    for number, prompt in enumerate(PROMPTS):
        for seed in range(light.shape[1]):
            name, color = f"{number}_{seed}.png", rng.integers(0, 90, 3) + 160 * light[number, seed]
            Image.new("RGB", (64, 64), tuple(int(part) for part in color)).save(folder / name)
            lines.append(json.dumps({"file_name": name, "caption": prompt, "seed": seed}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))


def lightness(sets: dict[str, PictureSet], unit: Unit) -> list[float]:
    """Of both pictures of a pair."""
    files = [sets[name].files[unit.prompt, unit.seed] for name in unit.models]
    return [float(np.asarray(Image.open(file)).mean()) / 255 for file in files]


def make_rated(
    folder: Path, answer: Answer = likes_dark, seeds: int = 2, raters: tuple[str, ...] = ("ann",)
) -> list[str]:
    """The keys of `train-reward` for folders with pictures and a file of answers, which are written below `folder`."""
    rng = np.random.default_rng(0)
    light = rng.random((len(PROMPTS), seeds)) < 0.5
    for name, lighter in zip(MODELS, (light, ~light), strict=True):
        make_pictures(folder / name, rng, lighter)
    sets = read_sets({name: str(folder / name) for name in MODELS})
    file = folder / FILE
    kept = begin(file, {name: one.fingerprint for name, one in sets.items()}, {"prefer": "Which?", "quality": "How?"})
    for rater, unit in itertools.product(raters, pair_units(sets)):
        add(file, kept, rated(unit, answer(*lightness(sets, unit)), rater))
    return [f"ratings=[{file}]", *(f"models.{name}={folder / name}" for name in MODELS)]
