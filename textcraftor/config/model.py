"""The model, and what suits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textcraftor.config.data import Understander
from textcraftor.config.fields import MOST_BATCH, MOST_PIXELS, group, number, opens, typed_path, whole, word
from textcraftor.config.rewards import Scorer
from textcraftor.config.rules import Group


@dataclass
class Target(Group):
    """Anything that an import path names, and its arguments."""

    _target_: str = word()
    """The import path of a class or function."""
    path: str | None = typed_path(default=None)
    """Of its weights."""
    config: str | None = typed_path(default=None)
    """What a single file does not hold."""
    words: str | None = typed_path(default=None)
    """A text file of words to write, one a line."""
    backgrounds: str | None = typed_path(default=None)
    """A folder of pictures to write on."""
    device: str = word(default="auto")
    """Where it computes."""


@dataclass
class ScorerFiles(Scorer):
    """`model.scorers.<name>`: the files of a scorer that goes with the model."""

    _target_: str = word(default="")
    """Left to the reward."""


@dataclass
class ModelLetters(Group):
    """`model.letters`: what `textcraftor letters` writes, and how."""

    texts: dict[str, Any] = opens(Target)
    """Draws what is to be written."""
    painter: dict[str, Any] = opens(Target)
    """Writes it."""


@dataclass
class ModelPrompts(Group):
    """`model.prompts`: the prompts that come with the model."""

    path: str | None = typed_path()
    """To train on."""
    held_out: str | None = typed_path()
    """Disjoint from them."""


@dataclass
class ModelSampling(Group):
    """`model.sampling`: the sampling that suits the model."""

    steps: int = whole(least=1)
    """Steps of the sampler."""
    guidance_scale: float = number(least=1)
    """Of classifier-free guidance."""
    height: int = whole(least=8, most=MOST_PIXELS)
    """In pixels."""
    width: int = whole(least=8, most=MOST_PIXELS)
    """In pixels."""
    scheduler: str = word()
    """The sampler."""


@dataclass
class Rates(Group):
    """`model.training.lr`: the learning rates that suit the model."""

    text_encoder: float = number(above=0)
    """Of a text encoder's own weights."""
    text_encoder_lora: float = number(above=0)
    """Of a text encoder's adapters."""
    denoiser: float = number(above=0)
    """Of the denoiser's own weights."""
    denoiser_lora: float = number(above=0)
    """Of the denoiser's adapters."""


@dataclass
class ModelTraining(Group):
    """`model.training`: the training that suits the model."""

    steps: int = whole(least=1)
    """Optimiser steps."""
    batch_size: int = whole(least=1, most=MOST_BATCH)
    """Prompts a step."""
    sampling_steps: int | None = whole(least=1)
    """Of the pictures to learn from."""
    k: int = whole(least=1)
    """Steps with a gradient."""
    ema_decay: float = number(least=0, below=1)
    """Of the moving average of the weights."""
    lr: Rates = group()
    """Of each part, by the way that it is tuned."""


@dataclass
class Model(Group):
    """`model`: the text-to-image model that is tuned."""

    name: str = word(default="")
    """Of this configuration."""
    path: str = typed_path()
    """A folder of diffusers, a single-file checkpoint or a hub id."""
    layout: str | None = typed_path(default=None)
    """By which dry_run=true predicts where the weights are not: a published layout, or a folder of configurations."""
    config: str | None = typed_path(default=None)
    """Of a single file: a folder or hub id in diffusers' format for the settings and tokenizers that it lacks."""
    load: dict[str, Any] = opens(Target)
    """What loads it."""
    judge: dict[str, Any] | None = opens(Target)
    """What reads pictures back, where the truth about them is known."""
    upsampler: dict[str, Any] | None = opens(Target)
    """What rewrites prompts for upsample=true."""
    understander: dict[str, Any] | None = opens(Understander)
    """What advises on pictures in textcraftor enhance, unless understander= names another."""
    letters: ModelLetters = group()
    """Of textcraftor letters."""
    prompts: ModelPrompts = group()
    """That come with it."""
    weights: str | None = typed_path(default=None)
    """The folder that other keys refer to."""
    scorers: dict[str, dict[str, Any]] = opens(ScorerFiles, each=True)
    """The files of the scorers that go with it, by name."""
    sampling: ModelSampling = group()
    """That suits it."""
    training: ModelTraining = group()
    """That suits it."""
