"""Which of two pictures shows the prompt better: asked in both orders, and a disagreement is a tie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from textcraftor.evaluation.bradley_terry import Votes, compared
from textcraftor.evaluation.judging.answers import Answers
from textcraftor.evaluation.judging.base import Answer, Asked, Question, content_of
from textcraftor.evaluation.judging.reading import answer_in
from textcraftor.evaluation.judging.vlm import VLM

FIRST, SECOND, TIE = "first", "second", "tie"
WHICH = """Two pictures were made from the caption below. Which of them shows better what the caption says? First \
compare both with the caption, and give your reasons. In the last line write one word alone: first, second or tie.

The caption: {}"""
SCORES = {FIRST: 1.0, TIE: 0.5, SECOND: 0.0}  # of the picture that is shown first
BASE, HERE = "base", "here"
SAMPLES = 1000  # of the bootstrap


class Pairwise(VLM):
    """Compares pictures of the same prompt and seed by two models. Its figure is the second model's score: 1 where that
    is preferred in both orders, 0 where the first is, 1/2 where the orders disagree or either is a tie."""

    name = "pairwise"

    def read(self, text: str, question: Question) -> Answer:
        """The value is the score of the picture that is shown first."""
        return answer_in(text, question, SCORES, reasons=True)


def both_orders(prompt: str, first: Image.Image, second: Image.Image, place: str = "") -> tuple[Asked, Asked]:
    """A pair of pictures as it is asked, and turned round."""
    question = Question(WHICH.replace("{}", prompt), FIRST, (FIRST, SECOND, TIE))
    orders = ((first, second), (second, first))
    straight, turned = (Asked(order, content_of(order), prompt, question, place) for order in orders)
    return straight, turned


def score_of(straight: Answer, turned: Answer) -> float | None:
    """The second picture's score of a pair's two answers; None where one is missing."""
    if straight.value is None or turned.value is None:
        return None
    if straight.value == 0 and turned.value == 1:
        return 1.0
    return 0.0 if straight.value == 1 and turned.value == 0 else 0.5


def scores(judge: Pairwise, pairs: Iterable[Sequence[Any]], answers: Answers, batch_size: int) -> list[float | None]:
    """The second model's score of each pair, asked for where it is not known.

    Args:
        pairs: (prompt, first picture, second picture, place).
        answers: keeps the answers.
        batch_size: pairs at a time.
    """
    scores: list[float | None] = []
    asked: list[Asked] = []
    for prompt, first, second, place in pairs:
        asked += both_orders(prompt, first, second, place)
        if len(asked) >= 2 * batch_size:
            scores += _scores(judge, asked, answers)
            asked = []
    return scores + _scores(judge, asked, answers)


def _scores(judge: Pairwise, asked: Sequence[Asked], answers: Answers) -> list[float | None]:
    replies = answers.of(asked, judge.answers)
    return [score_of(*pair) for pair in zip(replies[::2], replies[1::2], strict=True)]


def strengths(prompts: Sequence[str], values: Sequence[float | None]) -> dict[str, Any]:
    """What follows of the pairs that are answered: wins, ties and losses of `here`, its share with ties counted half,
    and Bradley and Terry's strengths, see `bradley_terry.compared`.

    Args:
        prompts: of each pair.
        values: the score of `here`.
    """
    rows = [(HERE, BASE, value, prompt) for prompt, value in zip(prompts, values, strict=True) if value is not None]
    known = np.array([row[2] for row in rows])
    counts = {name: int((known == value).sum()) for name, value in (("wins", 1), ("ties", 0.5), ("losses", 0))}
    whole = {**counts, "unanswered": len(values) - len(rows), "share": float(known.mean()) if rows else float("nan")}
    return whole | ({"strengths": compared(Votes.of((HERE, BASE), rows), SAMPLES, 0)["models"]} if rows else {})
