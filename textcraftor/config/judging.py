"""The judge of pictures."""

from __future__ import annotations

from dataclasses import dataclass

from textcraftor.config.fields import choice, typed_path, typed_text, word
from textcraftor.config.rules import Group

PROTOCOLS = ("drawbench", "tifa", "dpg", "b_vqa", "vqascore", "pairwise")


@dataclass
class Judge(Group):
    """`judge`: what judges pictures, and its arguments; further ones may be added."""

    _target_: str = word()
    """The import path of what makes it."""
    protocol: str = choice(PROTOCOLS, default=PROTOCOLS[0])
    """What a model is asked."""
    questions: str | None = typed_path(default=None)
    """A published file of questions, or of what each picture must show."""
    question: str | None = typed_text(default=None)
    """What is asked, with {} where the prompt goes."""
    answer: str | None = typed_text(default=None)
    """How the wanted answer begins."""
    path: str | None = typed_path(default=None)
    """Of a detector: a folder or a hub id."""
    clip: str | None = typed_path(default=None)
    """The CLIP that names colours."""
