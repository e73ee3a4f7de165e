"""What the keys of all commands have in common."""

from __future__ import annotations

from dataclasses import dataclass

from textcraftor.config.fields import typed_path, typed_text, word
from textcraftor.config.rules import Group


@dataclass
class Command(Group):
    """What every command has."""

    run_dir: str = typed_path()
    """The folder that it writes."""


@dataclass
class Named(Command):
    """What commands that write a folder have."""

    name: str = typed_text()
    """Of the folder, within the command's own."""


@dataclass
class Computing(Named):
    """What commands that compute have."""

    device: str = word()
    """cpu, cuda, cuda:1, or auto: a GPU where there is one."""
