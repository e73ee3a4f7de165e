"""The rewards: scorers by name, each with its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textcraftor.config.fields import flag, number, opens, typed_path, typed_text, word
from textcraftor.config.rules import Group, RefusedError


@dataclass
class Scorer(Group):
    """`rewards.<name>.reward`: what scores pictures, and its arguments; further ones may be added."""

    _target_: str = word()
    """The import path of a class, of a function that loads one, or of a function of images and prompts."""
    _partial_: bool = flag(default=False)
    """True for a function of images and prompts."""
    path: str | None = typed_path(default=None)
    """Its weights."""
    checkpoint: str | None = typed_path(default=None)
    """Its weights, in one file."""
    clip: str | None = typed_path(default=None)
    """The CLIP that it reads pictures with."""
    head: str | None = typed_path(default=None)
    """What it adds to that CLIP."""
    tokenizer: str | None = typed_path(default=None)
    """The tokenizer of its text encoder."""
    processor: str | None = typed_path(default=None)
    """What it reads prompts and pictures with, without weights."""
    config: str | None = typed_path(default=None)
    """The settings of its network."""
    architecture: str | None = typed_path(default=None)
    """open_clip's name of its network, or a file with its settings."""
    recogniser: str | None = typed_path(default=None)
    """What reads text off pictures."""
    detector: str | None = typed_path(default=None)
    """What finds text in pictures."""
    alphabet: str | None = typed_text(default=None)
    """The only characters that may be read; null: all that the recogniser knows."""
    question: str | None = typed_text(default=None)
    """What an image-text model is asked, with {} where the prompt goes."""
    answer: str | None = typed_text(default=None)
    """How the wanted answer begins."""
    condition: str | None = typed_text(default=None)
    """Words for what is judged."""


@dataclass
class ScorerOrEnsemble(Scorer):
    """The same of a scorer that may have scorers within it."""

    members: dict[str, dict[str, Any] | None] | None = opens(Scorer, each=True, default=None)
    """Of an ensemble: the scorers that it combines, by name; null takes one out."""


@dataclass
class Reward(Group):
    """`rewards.<name>`: one scorer of the weighted sum."""

    reward: dict[str, Any] = opens(ScorerOrEnsemble)
    """What scores."""
    weight: float = number()
    """Of its scores in the sum; 0: measured, and not part of the loss."""
    target: float | None = number(default=None)
    """Training raises the score up to here and no further."""
    path: str | None = typed_path(default=None)
    """Of a reward that train-reward made: its folder, short for reward.path."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None and self.path != self.reward.get("path"):
            raise RefusedError("path", self.path, "left out: give the path of what scores, reward.path")
