"""Carries out what a Python call says, by the same parts as a command line."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from textcraftor.api.keywords import Keywords
from textcraftor.cli import carried_out, configured, register, resumes
from textcraftor.config.objects import providing
from textcraftor.config.overrides import as_typed
from textcraftor.errors import EndedRunError, UsageError
from textcraftor.models.loading import load_model
from textcraftor.models.model import Model

# diffusers and accelerate change torch for the whole process while they load a model.
_ONE_AT_A_TIME = threading.RLock()


def load(*keys: str, **values: Any) -> Model:
    """The model that keys such as `model="sd15"` and `device="cuda"` name, in float32; its pipeline is `.pipeline`."""
    with meaning("generate", keys, values) as config:
        return load_model(config)


def call(command: str, keys: tuple[str, ...], values: Mapping[str, Any]) -> tuple[Path, DictConfig, Any]:
    """Run a command; returns the folder that it wrote, its configuration, and what it returned.

    Raises:
        UsageError: what the command line would answer with one line.
        KeyboardInterrupt: a run was stopped by Ctrl-C; its checkpoint is written.
    """
    with meaning(command, keys, values) as config:
        try:
            folder, result = carried_out(command, config)
        except EndedRunError as error:
            if error.code == 128 + signal.SIGINT:
                raise KeyboardInterrupt from error
            raise
    return folder, config, result


@contextlib.contextmanager
def meaning(command: str, keys: tuple[str, ...], values: Mapping[str, Any]) -> Iterator[DictConfig]:
    """The configuration that a call means; within, the objects that it was given can be had, and calls of other threads
    wait."""
    if strange := next((key for key in keys if not is_override(key)), None):
        raise UsageError(f"{strange!r} must be key=value; further ones are keywords, as training={{'steps': 40}}")
    register()
    keywords = Keywords.read(command, keys, values)
    overrides = [*as_typed(command, keys), *keywords.overrides]
    if not resumes(command, overrides, keywords.values):
        overrides = [*keywords.implied, *overrides]
    with _ONE_AT_A_TIME, providing(keywords.objects):
        yield configured(command, overrides, keywords.values)


def is_override(key: Any) -> bool:
    """Whether this is one key of a command line, with its value; flags are none."""
    return isinstance(key, str) and not key.startswith("-") and ("=" in key or key.startswith("~"))
