"""Prompts, captioned pictures, and suites of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textcraftor.config.fields import (
    anything,
    choice,
    group,
    number,
    path_list,
    paths_by_name,
    text_list,
    typed_path,
    typed_text,
    whole,
    word,
)
from textcraftor.config.judging import PROTOCOLS
from textcraftor.config.rules import Group

CHOICES = ("random", "all", "first")


@dataclass
class PromptFile(Group):
    """`prompts` of commands that read one file."""

    path: str | None = typed_path()
    """Text, one prompt a line, or .csv, .tsv, .json, .jsonl or .parquet, perhaps .gz."""
    column: str | None = typed_text(default=None)
    """Of a table: the column of prompts; null finds prompt, text or caption."""
    texts: list[str] | None = text_list()
    """The prompts themselves, instead of a file."""


@dataclass
class Prompts(PromptFile):
    """`prompts`: what is trained on, and what is held out."""

    held_out: str | None = typed_path()
    """Prompts that are not trained on; null holds out the end of path."""


@dataclass
class Letters(Group):
    """`data.letters`: pictures of text beside the others."""

    path: str | None = typed_path()
    """A data set of pictures of text, as textcraftor letters writes it."""
    share: float = number(least=0, below=1)
    """Of every epoch."""


@dataclass
class DataSet(Group):
    """`data` of recaption: captioned pictures."""

    path: str | None = typed_path()
    """A folder of captioned pictures in any layout of docs/captions.md."""
    split: str = word()
    """Where the data set has several."""


@dataclass
class Captioned(DataSet):
    """`data` of train-captioner: captioned pictures."""

    captions: list[str] = path_list()
    """Files of further captions, as recaption writes them."""


@dataclass
class Pictures(Captioned):
    """`data`: captioned pictures to learn from."""

    held_out: int = whole(least=2)
    """So many records are not learned from: their captions are the prompts, unless prompts.held_out gives some."""
    aspect_ratio: float = number(least=1)
    """Of the widest and the tallest bucket, all of sampling.height x sampling.width pixels; 1: one bucket."""
    letters: Letters = group()
    """Pictures of text beside them."""


@dataclass
class Captions(Group):
    """`captions`: which caption of a picture is learned from."""

    p: float = number(least=0, most=1)
    """The probability of a synthetic caption instead of the ground truth."""
    choose: str = choice(CHOICES)
    """Of several captions of one picture: random, another each epoch; all in turn, one an epoch; or first."""
    kind: str = word()
    """Of the synthetic captions."""
    dropout: float = number(least=0, most=1)
    """Share of captions left empty, so that guidance has a second branch."""


@dataclass
class Suite(Group):
    """`suite`: prompts to evaluate with."""

    files: dict[str, str] = paths_by_name()
    """Files of prompts, by their category."""
    category: str | None = word()
    """The column that says a prompt's category; null: each file is one."""
    protocol: str = choice(PROTOCOLS, default=PROTOCOLS[0])
    """What judge=vlm asks about its pictures."""
    questions: str | None = typed_path(default=None)
    """The published file of questions about its prompts, or of what their pictures must show."""


@dataclass
class Captioner(Group):
    """`captioner`: what describes pictures, and its arguments; further ones may be added."""

    _target_: str = word()
    """The import path of what loads it."""
    path: str | None = typed_path(default=None)
    """A folder or a hub id."""
    prompt: Any = anything(
        "text, text for each style, or null",
        lambda value: value is None or isinstance(value, str | dict),
        default=None,
    )
    """What it is asked."""


@dataclass
class Understander(Group):
    """`understander`: what advises on pictures, and its arguments; further ones may be added."""

    _target_: str = word()
    """The import path of what loads it."""
    path: str | None = typed_path(default=None)
    """A folder or a hub id."""
    url: str | None = typed_path(default=None)
    """Of a server that is asked instead."""
    model: str | None = typed_text(default=None)
    """Its name on the server."""


@dataclass
class NewCaptioner(Group):
    """`captioner` of train-captioner: the networks that it is made of."""

    clip: str = typed_path()
    """Its vision tower, frozen."""
    language_model: str = typed_path()
    """What writes."""
    prefix_length: int = whole(least=1)
    """Vectors that a picture becomes."""
    max_new_tokens: int = whole(least=1)
    """Of a caption."""
