"""What the keys of all commands have in common."""

from __future__ import annotations

from dataclasses import dataclass

from textcraftor.config.fields import word, written
from textcraftor.config.rules import Group


@dataclass
class Command(Group):
    """What every command has."""

    run_dir: str = written("a path")
    """The folder that it writes."""


@dataclass
class Named(Command):
    """What commands that write a folder have."""

    name: str = written("a name")
    """Of the folder, within the command's own."""


@dataclass
class Computing(Named):
    """What commands that compute have."""

    device: str = word()
    """cpu, cuda, cuda:1, or auto: a GPU where there is one."""
