"""What a dotted key of a command stands for, read off the dataclasses."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from textcraftor.config.rules import Rule, rule_of


@dataclass(frozen=True)
class Key:
    """What a dotted key stands for.

    Args:
        kind: the type of its value: a dataclass, a type, or a parametrised dict or list.
        nullable: whether the value may be null.
        known: the dataclass of the known keys, of an open mapping.
        is_open: whether any key may follow.
    """

    kind: Any
    rule: Rule
    nullable: bool = False
    known: type | None = None
    is_open: bool = False

    @property
    def is_text(self) -> bool:
        """Whether the value is taken as typed."""
        return self.rule.text and self.kind is str

    @property
    def holds_names(self) -> bool:
        """Whether this is a mapping whose names the user chooses."""
        return get_origin(self.kind) is dict and not self.is_open

    def child(self, name: str) -> Key | None:
        """What one more part of a dotted key stands for; None where there is no such key."""
        if self.is_open:
            own = fields_of(self.known).get(name) if self.known else None
            return own or Key(Any, Rule("a value"), nullable=True, is_open=True)
        if is_group(self.kind):
            return fields_of(self.kind).get(name)
        if get_origin(self.kind) is dict:
            kind, nullable = without_null(get_args(self.kind)[1])
            opened = self.rule.opens if self.rule.each else None
            return Key(kind, self.rule, nullable, opened, opened is not None)
        return Key(Any, self.rule, nullable=True) if self.kind is Any else None

    def keys(self) -> Iterator[str]:
        """Every dotted key below this one whose names are not the user's to choose."""
        group = self.known if self.is_open else self.kind
        for name, key in fields_of(group).items() if is_group(group) else ():
            yield name
            yield from (f"{name}.{below}" for below in key.keys())  # noqa: SIM118


@functools.cache
def fields_of(group: Any) -> dict[str, Key]:
    """A dataclass's keys by name."""
    hints, by_name = get_type_hints(group), {}
    for field in dataclasses.fields(group):
        rule = rule_of(field)
        kind, nullable = without_null(hints[field.name])
        is_open = rule.opens is not None and not rule.each
        by_name[field.name] = Key(kind, rule, nullable, rule.opens if is_open else None, is_open)
    return by_name


def is_group(kind: Any) -> bool:
    """Whether a type is a group of keys."""
    return dataclasses.is_dataclass(kind)


def without_null(hint: Any) -> tuple[Any, bool]:
    """A type without None, and whether None was in it."""
    if get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint):
        (kind,) = (one for one in get_args(hint) if one is not type(None))
        return kind, True
    return hint, False


def key_of(schema: type, key: str) -> Key | None:
    """What a dotted key of a command stands for; None where it has no such key."""
    current: Key | None = Key(schema, Rule("a group of keys"))
    for name in key.split("."):
        current = current.child(name) if current else None
    return current
