"""What every judge has in common: questions about a picture, and answers with a value each."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from textcraftor.captioning.image_to_text import Shown, pictures_of

CORRECT, INCORRECT = "correct", "incorrect"
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Question:
    """A question about a picture.

    Args:
        text: as the judge gets it.
        expected: the answer that counts as right.
        choices: the answers that count as answers; none where any text or number does.
        category: whose mean it goes into, beside the whole; empty: the whole alone.
        after: the places, in the list of its prompt's questions, of those that must be answered right for a right
            answer to this one to count.
    """

    text: str
    expected: str = CORRECT
    choices: tuple[str, ...] = (CORRECT, INCORRECT)
    category: str = ""
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """An answer to a question.

    Args:
        text: what a model wrote, or what a detector saw and why it counts.
        value: 1 right, 0 wrong, between them a probability; None: not answered.
        fault: why it is not answered.
    """

    text: str
    value: float | None = None
    fault: str = ""


@dataclass(frozen=True)
class Asked:
    """A question about a picture that waits for its answer.

    Args:
        shown: the pictures.
        content: of the pictures, see `content_of`.
        prompt: that the picture was made from.
        place: the file, for people.
    """

    shown: Shown
    content: str
    prompt: str
    question: Question
    place: str = ""


Ask = Callable[[Sequence[Asked]], list[Answer]]
Keep = Callable[[Sequence[Asked], Ask], list[Answer]]  # the answers that are known already, and those asked for


class Judge(Protocol):
    """Judges pictures by questions. Building one reads its files and loads no model; the first answer does.

    Args:
        name: of its figures: judge/<name>.
        by_task: whether its overall figure is the mean of its categories' means, instead of the mean over pictures.
    """

    name: str
    by_task: bool

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that it has no questions about, and a model that cannot be loaded."""
        ...

    def prepare(self, prompts: Sequence[str], keep: Keep) -> None:
        """Find out the questions about these prompts, where a model writes them."""
        ...

    def questions(self, prompt: str) -> Sequence[Question]:
        """What is asked about a picture of this prompt."""
        ...

    def answers(self, asked: Sequence[Asked]) -> list[Answer]:
        """An answer to each question."""
        ...

    def figures(self, questions: Sequence[Question], values: Sequence[float | None]) -> dict[str, float]:
        """A picture's figures by name, NaN where nothing was answered."""
        ...


def content_of(shown: Shown) -> str:
    """SHA-256 of pictures' sizes and pixels in RGB, whatever files they lie in."""
    whole = hashlib.sha256()
    for picture in pictures_of(shown):
        whole.update(f"{picture.size}".encode() + rgb(picture).tobytes())
    return whole.hexdigest()


def rgb(picture: Image.Image) -> Image.Image:
    """A picture in RGB, itself where it is."""
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def key_of(asked: Asked, settings: str) -> str:
    """What an answer depends on: the pictures, the question, and the judge's settings."""
    question = asked.question
    parts = [settings, asked.content, question.text, question.expected, question.choices]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def mean_of(values: Sequence[float | None]) -> float:
    """The mean of those that are there; NaN without any."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def share_unanswered(values: Sequence[float | None]) -> float:
    """The share that is not answered, in [0, 1]; NaN where nothing is asked."""
    return sum(value is None for value in values) / len(values) if values else math.nan


def named(name: str, score: float, values: Sequence[float | None]) -> Mapping[str, float]:
    """A picture's score and the share of its questions that were not answered."""
    return {name: score, f"{name}/unanswered": share_unanswered(values)}
