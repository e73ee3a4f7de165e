"""Pictures of words in the world's own font and rows: its letter data."""

from __future__ import annotations

import numpy as np
from PIL import Image

from textcraftor.toybox.render import render
from textcraftor.toybox.scenes import GROUNDS, LETTERS, Scene, Word, sample_word


class SeenWords:
    """Random series of letters, as all the world's words are; those that training never shows are left out."""

    alphabet = LETTERS

    def draw(self, rng: np.random.Generator) -> tuple[str, str]:
        return "series", sample_word(rng, "train").text


class WordPainter:
    """A ground with a word on its top or bottom row, and nothing else."""

    def __call__(self, kind: str, text: str, rng: np.random.Generator) -> tuple[Image.Image, str, str]:
        """The picture, its basic caption, and the detailed one: ground and row."""
        ground, row = str(rng.choice(list(GROUNDS))), str(rng.choice(["top", "bottom"]))
        pixels = render(Scene(ground, (), Word(text, row)))
        picture = Image.fromarray((pixels * 255).round().astype(np.uint8))
        detailed = f'{"an" if ground[0] in "aeiou" else "a"} {ground} ground with the word "{text}" at the {row}'
        return picture, f'a picture with the word "{text}"', detailed
