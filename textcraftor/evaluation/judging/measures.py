"""A judge that measures pictures by a function of images and prompts, such as the toybox's, which knows the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from textcraftor.evaluation.judging.base import Answer, Asked, Keep, Question
from textcraftor.rewards.preprocessing import from_pil


class Measures:
    """Each figure is a question of its own, answered with a number.

    Args:
        judge: `judge(images, prompts)` gives arrays (batch,) by figure, NaN where a prompt states nothing to judge by;
            images are float (batch, 3, height, width) in [0, 1].
        figures: those that are kept.
    """

    name, by_task = "measures", False

    def __init__(self, judge: Callable[..., Any], figures: Sequence[str]) -> None:
        self.judge, self.kept = judge, list(figures)

    def check(self, prompts: Sequence[str]) -> None:
        """It judges any prompt."""

    def prepare(self, prompts: Sequence[str], keep: Keep) -> None:
        """Questions are known."""

    def questions(self, prompt: str) -> list[Question]:
        return [Question(name, "", (), name) for name in self.kept]

    def answers(self, asked: Sequence[Asked]) -> list[Answer]:
        shown = {(one.content, one.prompt): one.shown for one in asked}
        rows = {key: self._figures(key[1], picture) for key, picture in shown.items()}
        values = (rows[one.content, one.prompt].get(one.question.text) for one in asked)
        return [
            Answer(f"{value:.4f}", value) if value is not None else Answer("", fault="does not apply")
            for value in values
        ]

    def _figures(self, prompt: str, picture: Any) -> dict[str, float | None]:
        measured = self.judge(torch.stack([from_pil(picture)]), [prompt])
        values = {name: float(value[0]) for name, value in measured.items()}
        return {name: value if value == value else None for name, value in values.items()}  # NaN differs from itself

    def figures(self, questions: Sequence[Question], values: Sequence[float | None]) -> dict[str, float]:
        pairs = zip(questions, values, strict=True)
        return {question.text: float("nan") if value is None else value for question, value in pairs}
