"""Understanding models: what asks them, and asks again where an answer cannot be used."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from PIL import Image

from textcraftor.assets import folder_or_id
from textcraftor.captioning.advice import INSTRUCTION, Advice, advice_in, question
from textcraftor.captioning.image_to_text import ImageToText, Shown, pictures_of
from textcraftor.captioning.prefix import PrefixCaptioner
from textcraftor.captioning.recaption import Captioner
from textcraftor.errors import UsageError
from textcraftor.models.loading import device_of

# What is shown, what is asked about it, and the number of the try, from 0; gives a text for each question.
Answers = Callable[[Sequence[Shown], Sequence[str], int], list[str]]


class Read(Protocol):
    """What was read out of an answer.

    Args:
        fault: why the answer could not be used; empty where it could.
    """

    @property
    def fault(self) -> str: ...


Found = TypeVar("Found", bound=Read)


class Answering(Protocol):
    """A model that answers questions about pictures.

    Args:
        name: of the model, for records.
        tries: how many answers to a question are looked at.
    """

    name: str
    tries: int

    def answers(self, pictures: Sequence[Shown], questions: Sequence[str], number: int) -> list[str]:
        """An answer to each question: at try 0 the likeliest, later a drawn one."""
        ...

    def probabilities(
        self, pictures: Sequence[Shown], questions: Sequence[str], words: Sequence[str]
    ) -> list[list[float]]:
        """How likely the answer to each question begins with each word, in [0, 1]."""
        ...


def ask(
    answers: Answers,
    pictures: Sequence[Shown],
    questions: Sequence[str],
    read: Callable[[int, str], Found],
    tries: int,
) -> list[Found]:
    """The parsed answer to each question. A question whose answer has a fault is asked again, `tries` times in all.

    Args:
        answers: asks the model; from the second try on its samples depend on the pictures, the question and the try.
        read: parses the answer to the question of an index.
    """
    by_index: dict[int, Found] = {}
    for number in range(tries):
        left = [index for index in range(len(pictures)) if index not in by_index or by_index[index].fault]
        if not left:
            break
        texts = answers([pictures[index] for index in left], [questions[index] for index in left], number)
        by_index |= {index: read(index, text) for index, text in zip(left, texts, strict=True)}
    return [by_index[index] for index in range(len(pictures))]


def ask_for_advice(
    answers: Answers, pictures: Sequence[Image.Image], prompts: Sequence[str], tries: int, box_scale: int
) -> list[Advice]:
    """Advice on each picture.

    Args:
        box_scale: as of `advice_in`.
    """
    questions = [question(prompt, box_scale) for prompt in prompts]
    return ask(answers, pictures, questions, lambda _, text: advice_in(text, box_scale), tries)


def check_understander(understander: Mapping[str, Any] | None, choices: str = "qwen_vl, endpoint or written") -> None:
    """Refuse an understanding model that is not named, or whose folder is not there.

    Args:
        choices: what `understander=` can be.
    """
    if understander is None:
        raise UsageError(f"understander is needed: choose understander={choices}")
    needed = {"path": "a folder or hub id", "url": "the server's address", "model": "its name on the server"}
    for key, what in needed.items():
        other = understander.get("url" if key == "path" else key)
        if key in understander and understander[key] is None and other is None:
            raise UsageError(f"understander.{key} is needed: {what}")
    if understander.get("path") is not None:
        folder_or_id(understander["path"], "understander.path")


def check_asking(**least_one: int) -> None:
    """Refuse counts of an understander that are less than 1."""
    for name, value in least_one.items():
        if value < 1:
            raise UsageError(f"understander.{name}={value} must be at least 1")


def seed_of(shown: Shown, asked: str, number: int) -> int:
    """A seed below 2^32 that depends on all that a model is given and on the number of the try."""
    pixels = b"".join(picture.tobytes() for picture in pictures_of(shown))
    return zlib.crc32(pixels + json.dumps([asked, number]).encode())


class AskedModel:
    """An image-text-to-text model of transformers that answers messages, as Qwen-VL: its likeliest answer first; from
    the second try on answers are drawn, one picture at a time, so that they do not depend on the others of a batch.

    Args:
        path: a local folder or a hub id.
        box_scale: how the model writes boxes, as of `advice_in`.
        tries: how many answers on a picture are looked at.
        max_new_tokens: of an answer.
        batch_size: pictures at a time, of the first try.
    """

    def __init__(
        self,
        path: str,
        box_scale: int = 1,
        tries: int = 3,
        max_new_tokens: int = 1000,
        batch_size: int = 4,
        device: str = "auto",
    ) -> None:
        check_asking(box_scale=box_scale, tries=tries, max_new_tokens=max_new_tokens, batch_size=batch_size)
        self.name, self.box_scale, self.tries, self.batch_size = path, box_scale, tries, batch_size
        self.model = ImageToText(
            path, INSTRUCTION, max_new_tokens=max_new_tokens, device=device_of(device), group="understander"
        )

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Advice]:
        return ask_for_advice(self.answers, pictures, prompts, self.tries, self.box_scale)

    def answers(self, pictures: Sequence[Shown], questions: Sequence[str], number: int) -> list[str]:
        """An answer to each question, see `Answering`."""
        size, texts = 1 if number else self.batch_size, []
        for start in range(0, len(pictures), size):
            shown, asked = pictures[start : start + size], questions[start : start + size]
            seed = seed_of(shown[0], asked[0], number) if number else None
            texts += self.model.answers(shown, asked, seed)
        return texts

    def probabilities(
        self, pictures: Sequence[Shown], questions: Sequence[str], words: Sequence[str]
    ) -> list[list[float]]:
        """The probability that each answer begins with each word, see `Answering`."""
        probabilities: list[list[float]] = []
        for start in range(0, len(pictures), self.batch_size):
            batch = slice(start, start + self.batch_size)
            probabilities += self.model.probabilities(pictures[batch], questions[batch], words).tolist()
        return probabilities


class Written:
    """A captioner whose texts are advice: it is asked nothing and does not read the prompt.

    Its tokenizer must give a JSON text back letter by letter, as byte-level ones do. `advice.text_of` writes what such
    a captioner is to be trained on.

    Args:
        captioner: gives a text for each picture.
        box_scale: how it writes boxes, as of `advice_in`; at 10 a number is one sign, or two.
        name: for records.
    """

    def __init__(self, captioner: Captioner, box_scale: int = 1, name: str = "written") -> None:
        check_asking(box_scale=box_scale)
        self.captioner, self.box_scale, self.name = captioner, box_scale, name

    @classmethod
    def load(cls, path: str | None, box_scale: int = 1, device: str = "auto") -> Written:
        """With the captioner that `PrefixCaptioner.save` wrote to a folder."""
        if path is None:
            raise UsageError("understander.path is needed: give the folder that train-captioner wrote")
        captioner = PrefixCaptioner.load(path, device=device_of(device))
        return cls(captioner, box_scale, captioner.name)

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Advice]:
        texts = self.captioner(pictures)
        return [advice_in(text, self.box_scale) for text, _ in zip(texts, prompts, strict=True)]
