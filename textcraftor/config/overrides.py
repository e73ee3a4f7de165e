"""Overrides of the command line: text is taken as typed, and an unknown key is answered with the right one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from textcraftor.config.commands import SCHEMAS
from textcraftor.config.schema import key_of
from textcraftor.config.words import unknown
from textcraftor.errors import UsageError


def split(override: str) -> tuple[str, str, str]:
    """The sign before a key (`+`, `++`, `~` or none), the key and the value; the value of `~key` is empty."""
    sign, key, value = re.fullmatch(r"(~|\+{0,2})([^=]*)=?(.*)", override, re.DOTALL).groups()  # type: ignore[union-attr]
    return sign, key, value


def quoted(value: str) -> str:
    """Text as a quoted value of Hydra's grammar that comes out again exactly.

    Backslashes count before `${` (OmegaConf's grammar), before a quote and at the end (Hydra's), and are doubled there.
    """
    value = re.sub(r"(\\*)'", r"\1\1\\'", literal(value))
    return f"'{value + trailing_backslashes(value)}'"


def literal(value: Any) -> Any:
    """A plain value whose texts OmegaConf will not read as interpolations."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, list):
        return [literal(one) for one in value]
    if isinstance(value, dict):
        return {name: literal(one) for name, one in value.items()}
    return value


def trailing_backslashes(value: str) -> str:
    """The backslashes that end a text."""
    return value[len(value.rstrip("\\")) :]


def as_typed(command: str, overrides: Sequence[str]) -> list[str]:
    """Quote the values of keys that hold text or paths, so that every sign means itself; null stays null where a key
    may be null."""
    typed = []
    for override in overrides:
        sign, name, value = split(override)
        key = key_of(SCHEMAS[command], name)
        if "=" in override and key and key.is_text and not (key.nullable and value == "null"):
            override = f"{sign}{name}={quoted(value)}"
        elif key and key.rule.literal:
            override = f"{sign}{name}={literal(value)}"
        typed.append(override)
    return typed


def check_keys(command: str, overrides: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Refuse keys that the command does not have, and a user's own name given twice, as one value would be lost; `+`
    before a key that the command has is accepted.

    Args:
        groups: Hydra's, with their files; Hydra checks them itself.

    Raises:
        UsageError: an unknown key, with the right one where there is one; a name twice.
    """
    accepted, named = [], set[str]()
    for override in overrides:
        sign, name, value = split(override)
        group = name.partition("@")[0]
        if group in groups and value == "null":
            raise UsageError(f"{name}=null must be one of {', '.join(groups[group])}")
        if name == "hydra":
            raise UsageError(f"{override}: give one of Hydra's own keys, as hydra.sweep.dir=FOLDER")
        if override.startswith("-") or group in groups or name.startswith(("hydra.", "hydra/")):
            accepted.append(override)
            continue
        key = key_of(SCHEMAS[command], name)
        if key is None:
            raise unknown(command, name)
        if key.is_text and key.rule.each and sign != "~":
            if name in named:
                raise UsageError(f"{name} is given twice: give each name once")
            named.add(name)
        accepted.append(f"+{override}" if sign == "+" else override)
    return accepted
