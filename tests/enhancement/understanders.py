"""Understanding models whose answers are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from textcraftor.captioning.advice import Advice
from textcraftor.sampling.regions import Region

EVERYWHERE = (0.0, 0.0, 1.0, 1.0)


class Scripted:
    """Advises the prompt's own words with others after them on the whole picture, and `left` on the left half.

    Args:
        silent: prompts with this word get no advice.
        faulty: prompts with this word get an answer that cannot be used.
    """

    name = "scripted"

    def __init__(self, more: str = "", left: str = "", silent: str = "", faulty: str = "") -> None:
        self.more, self.left, self.silent, self.faulty = more, left, silent, faulty

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Advice]:
        assert len(pictures) == len(prompts)
        return [self._on(prompt) for prompt in prompts]

    def _on(self, prompt: str) -> Advice:
        if self.faulty and self.faulty in prompt:
            return Advice(fault="no JSON list in the answer: what a fine picture")
        if self.silent and self.silent in prompt:
            return Advice()
        parts = [Region(EVERYWHERE, f"{prompt} {self.more}", 2.0)]
        parts += [Region((0.0, 0.0, 0.5, 1.0), self.left)] if self.left else []
        return Advice(tuple(parts))
