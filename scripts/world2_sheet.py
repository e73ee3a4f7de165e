"""Draws what taste means in the second world: `python scripts/world2_sheet.py textcraftor/toybox/world2/taste.png`.

Above the best and the worst that steepest ascent and descent over scene parameters find from random scenes; below them
scenes as training draws them, from the least tasteful to the most.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from textcraftor.toybox.world2.render import render, taste_of_scene
from textcraftor.toybox.world2.scenes import JITTER, LEFT, PLACES, RIGHT, Scene, Shape, sample_scene

COLUMNS, ENLARGED = 8, 2


def _places(scene: Scene, index: int) -> tuple[str, ...]:
    """Where a shape may stand: anywhere if alone, else on its side."""
    if len(scene.shapes) == 1:
        return tuple(PLACES)
    return LEFT if scene.shapes[index].place in LEFT else RIGHT


def neighbours(scene: Scene) -> Iterator[Scene]:
    """Scenes that differ in one thing that a prompt may leave free."""
    style = scene.style
    changes = [
        *({"light": "good", "strength": 0.0}, {"light": "dark", "strength": 1.0}, {"light": "faded", "strength": 1.0}),
        *({"softness": softness} for softness in (0.0, 1.7)),
        *({"ground": ground} for ground in ("plain", "gradient", "stained")),
        *({key: value} for key in ("shaded", "shadow") for value in (False, True)),
    ]
    yield from (replace(scene, style=replace(style, **change)) for change in changes)
    for index, shape in enumerate(scene.shapes):
        options = [replace(shape, vividness=vividness) for vividness in (0.0, 0.5, 1.0)]
        options += [replace(shape, place=place) for place in _places(scene, index)]
        options += [replace(shape, jitter=(x, y)) for x in (-JITTER, 0, JITTER) for y in (-JITTER, 0, JITTER)]
        for option in options:
            shapes: list[Shape] = list(scene.shapes)
            shapes[index] = option
            yield replace(scene, shapes=tuple(shapes))


def climbed(scene: Scene, sign: float) -> Scene:
    """The scene that no single change makes more tasteful (sign 1) or less (sign -1)."""
    while True:
        best = max(neighbours(scene), key=lambda option: sign * taste_of_scene(option))
        if sign * taste_of_scene(best) <= sign * taste_of_scene(scene) + 1e-9:
            return scene
        scene = best


def row(scenes: list[Scene]) -> np.ndarray:
    tiles = [np.pad(render(scene), ((1, 1), (1, 1), (0, 0)), constant_values=1) for scene in scenes]
    return np.concatenate(tiles, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(3)
    starts = [sample_scene(rng) for _ in range(COLUMNS)]
    drawn = sorted((sample_scene(rng) for _ in range(3 * COLUMNS)), key=taste_of_scene)
    rows = [[climbed(scene, sign) for scene in starts] for sign in (1, -1)]
    for scenes in rows:
        print("taste", " ".join(f"{taste_of_scene(scene):.2f}" for scene in scenes))
    rows += [drawn[i : i + COLUMNS] for i in range(0, len(drawn), COLUMNS)]
    sheet = Image.fromarray((np.concatenate([row(scenes) for scenes in rows]) * 255).round().astype(np.uint8))
    sheet.resize((sheet.width * ENLARGED, sheet.height * ENLARGED), Image.Resampling.NEAREST).save(
        arguments.path, optimize=True
    )


if __name__ == "__main__":
    main()
