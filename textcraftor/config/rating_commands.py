"""The keys of the commands by which people judge pictures."""

from __future__ import annotations

from dataclasses import dataclass

from textcraftor.config.command import Command, Computing, Named
from textcraftor.config.fields import (
    MOST_BATCH,
    MOST_RANK,
    choice,
    group,
    number,
    one_seed,
    path_list,
    paths_by_name,
    texts_by_name,
    typed_path,
    whole,
    word,
    word_list,
    written,
)
from textcraftor.config.model import Model
from textcraftor.config.rules import Group

MOST_SAMPLES = 100_000
MOST_FOLDS = 100


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


@dataclass
class TowerLora(Group):
    """`lora` of train-reward: adapters of both towers' attention."""

    rank: int = whole(least=1, most=MOST_RANK)
    """Of the update."""
    alpha: float = number(above=0)
    """The update is scaled by alpha / rank."""


@dataclass
class TowerTraining(Group):
    """`training` of train-reward: how both towers learn."""

    steps: int = whole(least=1)
    """Optimiser steps."""
    batch_size: int = whole(least=1, most=MOST_BATCH)
    """Choices a step."""
    lr: float = number(above=0)
    """The learning rate."""
    warmup: int = whole(least=0)
    """Steps in which the learning rate rises."""


@dataclass
class TrainReward(Computing):
    """textcraftor train-reward."""

    model: Model = group()
    """Whose scorers' CLIPs are begun from."""
    ratings: list[str] = path_list()
    """What textcraftor rate wrote; on the command line simply its paths."""
    models: dict[str, str] = paths_by_name()
    """The folders that were rated, by the same names, wherever they are by now."""
    question: str | None = word()
    """The key of the question to learn from; null: the only one that was answered."""
    raters: list[str] | None = word_list()
    """Whose answers count; null: all."""
    layout: str = choice(("aesthetic", "pickscore"))
    """A linear head on frozen embeddings of pictures; or a CLIP whose towers learn, with which prompts count."""
    clip: str | None = typed_path()
    """A CLIP or SigLIP to begin from; null: that of the model's scorer in this layout."""
    folds: int = whole(least=2, most=MOST_FOLDS)
    """Of the prompts, each held out in turn."""
    draws: int | None = whole(least=0, most=MOST_FOLDS)
    """For each point of the learning curve; null: what the layout can afford."""
    lora: TowerLora = group()
    """Of layout=pickscore."""
    training: TowerTraining = group()
    """Of layout=pickscore."""
    seed: int = one_seed()
    """Of folds and draws."""
    features: str = written("a path")
    """The folder in which embeddings of pictures are kept for the next training."""
