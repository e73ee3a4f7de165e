"""What a value must be, in the words that a refusal quotes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Limit = tuple[str, Callable[[Any], bool]]


@dataclass(frozen=True)
class Rule:
    """What a value must be.

    Args:
        kind: of value, as `a whole number`; `{key}` and `{value}` stand for those of the key that is refused.
        limits: what must hold of a value of this kind, each with the words for it.
        text: whether the value is text that is taken as typed, never parsed.
        literal: whether texts within the value, as in a list, are taken as they are: `${` is no interpolation there.
        opens: the dataclass of those keys of an open mapping that are known.
        each: whether this is the rule of each value of a mapping, whose names the user chooses.
        judges_null: whether the limits hold of null too; otherwise the field's type says whether it may be null.
    """

    kind: str
    limits: tuple[Limit, ...] = ()
    text: bool = False
    literal: bool = False
    opens: type | None = None
    each: bool = False
    judges_null: bool = False

    def broken(self, value: Any) -> str | None:
        """The first limit that the value breaks, in words."""
        if value is None and not self.judges_null:
            return None
        return next((words for words, holds in self.limits if not _holds(holds, value)), None)

    def __str__(self) -> str:
        return ", ".join(
            [self.kind, *(words for words, _ in self.limits if words.startswith(("at ", "above", "below")))]
        )


def _holds(holds: Callable[[Any], bool], value: Any) -> bool:
    """Whether a limit holds; of a value of another kind than it is for, it does not."""
    try:
        return holds(value)
    except (TypeError, ValueError, AttributeError, OverflowError):
        return False


class RefusedError(ValueError):
    """A field's value breaks a rule; whoever knows where the group stands says the whole key."""

    def __init__(self, name: str, value: Any, words: str) -> None:
        super().__init__(name, value, words)


def shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {shown(one)}' for key, one in value.items())}}}"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


class Group:
    """The keys of one configuration group; building it refuses values outside their limits."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            rule = rule_of(field)
            if not rule.each and (words := rule.broken(value)):
                raise RefusedError(field.name, value, words)


def rule_of(field: dataclasses.Field) -> Rule:
    """A field's rule; a field without one is a group of keys."""
    return field.metadata.get("rule", Rule("a group of keys"))


def limits(least: float | None, above: float | None, most: float | None, below: float | None) -> tuple[Limit, ...]:
    """The limits that are given, in words."""
    given: list[Limit] = []
    if least is not None:
        given.append((f"at least {least}", lambda value: value >= least))
    if above is not None:
        given.append((f"above {above}", lambda value: value > above))
    if most is not None:
        given.append((f"at most {most}", lambda value: value <= most))
    if below is not None:
        given.append((f"below {below}", lambda value: value < below))
    return tuple(given)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


FINITE: Limit = ("finite", is_number)
