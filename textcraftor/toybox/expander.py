"""The world's stand-in for prompt engineering: its grammar says whatever a prompt leaves open. No language model is
involved; what is added is drawn by the prompt's own hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from textcraftor.toybox.captions import descriptive
from textcraftor.toybox.judge import Wanted, parse
from textcraftor.toybox.scenes import GROUNDS, LEFT, PLACES, RIGHT, SIZES, Scene, Shape, Word, colors_on


class Expander:
    """Prompts to descriptive ones that state the same facts and more; what the grammar cannot read stays as it is."""

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        return [self._expand(prompt) for prompt in prompts]

    def _expand(self, prompt: str) -> str:
        wanted = parse(prompt)
        rng = np.random.default_rng(list(hashlib.sha256(prompt.encode()).digest()))
        grounds = [wanted.ground] if wanted.ground else [g for g in GROUNDS if self._fits(g, wanted)]
        if not 1 <= len(wanted.shapes) <= 2 or not grounds:
            return prompt
        ground = str(rng.choice(grounds))
        taken = {shape.place for shape in wanted.shapes if shape.place}
        shapes = []
        for shape in wanted.shapes:
            place = shape.place or self._place(len(wanted.shapes), taken, rng)
            taken.add(place)
            shapes.append(Shape(shape.color, shape.shape, shape.size or str(rng.choice(list(SIZES))), place))
        word = Word(wanted.word, wanted.row or str(rng.choice(["top", "bottom"]))) if wanted.word else None
        return descriptive(Scene(ground, tuple(shapes), word))

    @staticmethod
    def _fits(ground: str, wanted: Wanted) -> bool:
        return all(shape.color in colors_on(ground) for shape in wanted.shapes)

    @staticmethod
    def _place(count: int, taken: set[str], rng: np.random.Generator) -> str:
        """Anywhere for a shape alone, else on the side that is free."""
        if count == 1:
            return str(rng.choice(list(PLACES)))
        return str(rng.choice(RIGHT if taken & set(LEFT) else LEFT))
