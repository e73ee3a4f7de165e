"""The one exception for what a user can put right, and the plainest rules that raise it.

The command shows its message as one line, without a traceback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf


class UsageError(ValueError):
    """A value, the rule that it breaks, and the remedy."""


def at_least(config: Any, limits: Mapping[str, float]) -> None:
    """Refuse a configuration in which the value of a dotted key is below its limit; null has none."""
    for key, least in limits.items():
        value = OmegaConf.select(config, key)
        if value is not None and value < least:
            raise UsageError(f"{key}={value} must be at least {least}")


def check_seeds(key: str, seeds: Any) -> None:
    """Refuse what is no list of seeds under this key."""
    listed = isinstance(seeds, Sequence) and not isinstance(seeds, str)
    if not listed or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UsageError(f"{key}={seeds} must be a list of whole numbers from 0 on, as {key}=[0,1]")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"{key}={list(seeds)} must name at least one seed, and each once")
