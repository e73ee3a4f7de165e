"""The keys of the commands that write captions, prompts and pictures of text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textcraftor.config.command import Computing, Named
from textcraftor.config.data import Captioned, Captioner, DataSet, NewCaptioner, PromptFile
from textcraftor.config.fields import MOST_BATCH, group, groups_by_name, one_seed, opens, whole, word
from textcraftor.config.model import Model
from textcraftor.config.training import Stage


@dataclass
class TrainCaptioner(Computing):
    """textcraftor train-captioner."""

    data: Captioned = group()
    """Captioned pictures to learn from."""
    captioner: NewCaptioner = group()
    """The networks that it is made of."""
    stages: dict[str, Stage] = groups_by_name("start, kind, steps and lr")
    """Each a folder of the run: a base captioner, and fine-tunes of it."""
    batch_size: int = whole(least=1, most=MOST_BATCH)
    """Pictures a step, all processes together."""
    warmup: int = whole(least=0)
    """Steps in which the learning rate rises."""
    seed: int = one_seed()
    """Of all that is drawn."""


@dataclass
class Recaption(Computing):
    """textcraftor recaption."""

    captioner: dict[str, Any] = opens(Captioner)
    """What describes pictures."""
    data: DataSet = group()
    """A folder of captioned pictures."""
    style: str = word()
    """The kind of caption: descriptive, short, or another."""
    batch_size: int = whole(least=1, most=MOST_BATCH)
    """Pictures at a time."""


@dataclass
class Letters(Named):
    """textcraftor letters."""

    model: Model = group()
    """What writes, and how."""
    count: int = whole(least=1)
    """How many pictures."""
    seed: int = one_seed()
    """Of all that is drawn."""


@dataclass
class Upsample(Computing):
    """textcraftor upsample."""

    model: Model = group()
    """What rewrites."""
    prompts: PromptFile = group()
    """A text file, one prompt a line."""
