"""Understanding models: what asks them, and asks again where an answer cannot be used."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence

from PIL import Image

from textcraftor.captioning.advice import INSTRUCTION, Advice, advice_in, question
from textcraftor.captioning.image_to_text import ImageToText
from textcraftor.captioning.prefix import PrefixCaptioner
from textcraftor.captioning.recaption import Captioner
from textcraftor.errors import UsageError
from textcraftor.models.loading import device_of

# Pictures, what is asked about each, and the number of the try, from 0; gives a text for each picture.
Answers = Callable[[Sequence[Image.Image], Sequence[str], int], list[str]]


def ask(
    answers: Answers, pictures: Sequence[Image.Image], prompts: Sequence[str], tries: int, box_scale: int
) -> list[Advice]:
    """Advice on each picture; a model whose answer cannot be used is asked again, `tries` times in all.

    Args:
        answers: asks the model; what it draws from the second try on depends on the picture, the question and the try.
        box_scale: as of `advice_in`.
    """
    questions = [question(prompt, box_scale) for prompt in prompts]
    advice: dict[int, Advice] = {}
    for number in range(tries):
        left = [index for index in range(len(pictures)) if index not in advice or advice[index].fault]
        if not left:
            break
        texts = answers([pictures[index] for index in left], [questions[index] for index in left], number)
        advice |= {index: advice_in(text, box_scale) for index, text in zip(left, texts, strict=True)}
    return [advice[index] for index in range(len(pictures))]


def check_asking(**least_one: int) -> None:
    """Refuse counts of an understander that are less than 1."""
    for name, value in least_one.items():
        if value < 1:
            raise UsageError(f"understander.{name}={value} must be at least 1")


def seed_of(picture: Image.Image, asked: str, number: int) -> int:
    """A seed below 2^32 that depends on all that a model is given and on the number of the try."""
    return zlib.crc32(picture.tobytes() + json.dumps([asked, number]).encode())


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
        return ask(self._answers, pictures, prompts, self.tries, self.box_scale)

    def _answers(self, pictures: Sequence[Image.Image], questions: Sequence[str], number: int) -> list[str]:
        size, texts = 1 if number else self.batch_size, []
        for start in range(0, len(pictures), size):
            shown, asked = pictures[start : start + size], questions[start : start + size]
            seed = seed_of(shown[0], asked[0], number) if number else None
            texts += self.model.answers(shown, asked, seed)
        return texts


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
