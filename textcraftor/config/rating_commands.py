"""The keys of the commands by which people judge pictures."""

from __future__ import annotations

from dataclasses import dataclass

from textcraftor.config.command import Command, Named
from textcraftor.config.fields import (
    choice,
    one_seed,
    path_list,
    paths_by_name,
    texts_by_name,
    whole,
    word,
    word_list,
)

MOST_SAMPLES = 100_000


@dataclass
class Rate(Command):
    """textcraftor rate."""

    models: dict[str, str] = paths_by_name()
    """Folders that generate or evaluate wrote, by names that raters do not see."""
    questions: dict[str, str] = texts_by_name()
    """About two pictures side by side, by short keys."""
    grades: dict[str, str] = texts_by_name()
    """About one picture, answered from 1 to 10, by short keys."""
    ask: list[str] = word_list()
    """The keys of those that are asked."""
    next: str = choice(("random", "active"))
    """Pairs in random order, or of the models whose next vote tells most."""
    shared: int = whole(least=0)
    """So many come first for every rater, so that agreement can be measured."""
    seed: int = one_seed()
    """Of order and sides."""
    host: str = word()
    """0.0.0.0 lets others on the network in: anyone who reaches the page can rate."""
    port: int = whole(least=0, most=65535)
    """0 takes a free one."""


@dataclass
class Ratings(Named):
    """textcraftor ratings."""

    files: list[str] = path_list()
    """What textcraftor rate wrote; on the command line simply their paths."""
    questions: list[str] | None = word_list()
    """The keys of some questions; null: all that were answered."""
    models: dict[str, str] = paths_by_name()
    """The folders that were rated, by the same names, for the report's pictures."""
    samples: int = whole(least=100, most=MOST_SAMPLES)
    """Of the bootstrap."""
    seed: int = one_seed()
    """Of the bootstrap."""
