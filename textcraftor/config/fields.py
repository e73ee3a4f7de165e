"""Fields of the configuration: each says its kind and its limits once.

A group is a dataclass of such fields. Defaults stand in the YAML files alone; a field has one here only where the YAML
files may leave its key out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import MISSING

from textcraftor.config.rules import FINITE, Limit, Rule, is_number, limits

# More than anybody means, so that a slip or a stranger asks for no terabytes.
MOST_BATCH, MOST_PIXELS, MOST_RANK = 100_000, 16_384, 16_384
MOST_SEED = 2**64 - 1


def ruled(rule: Rule, default: Any = MISSING) -> Any:
    """A field with a rule; without a default its key must be given."""
    return dataclasses.field(default=default, metadata={"rule": rule})


def number(
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    default: Any = MISSING,
) -> Any:
    """A finite number between limits."""
    return ruled(Rule("a number", (FINITE, *limits(least, above, most, below))), default)


def whole(least: int | None = None, most: int | None = None, default: Any = MISSING) -> Any:
    """A whole number between limits, both included."""
    return ruled(Rule("a whole number", limits(least, None, most, None)), default)


def number_or(word: str, *, above: float, of: str = "a number", default: Any = MISSING) -> Any:
    """A word, such as `auto`, or a finite number above a limit; for a field of the type Any."""
    return anything(
        f"{word} or {of} above {above}",
        lambda value: value == word or (is_number(value) and value > above),
        default,
    )


def flag(default: Any = MISSING) -> Any:
    """A truth value."""
    return ruled(Rule("true or false"), default)


def choice(words: Sequence[str], default: Any = MISSING) -> Any:
    """One of some words."""
    rule = f"one of {', '.join(words)}" if len(words) > 2 else " or ".join(words)
    return ruled(Rule(rule, ((rule, lambda value: value in words),)), default)


def word(default: Any = MISSING) -> Any:
    """A plain word, parsed as Hydra does; whoever knows the words checks it."""
    return ruled(Rule("a name"), default)


def typed_text(default: Any = MISSING) -> Any:
    """Text for people or models, taken as typed."""
    return ruled(Rule("text", text=True), default)


def typed_path(default: Any = MISSING) -> Any:
    """A path or an address, taken as typed; `~` is expanded where it is opened."""
    return ruled(Rule("a path", text=True), default)


def written(kind: str) -> Any:
    """Text that is taken as typed, and is not empty."""
    return ruled(Rule(kind, ((f"{kind}, not empty", lambda value: bool(value.strip())),), text=True))


def path_list() -> Any:
    """A list of paths."""
    kind = "a list of paths, as {key}=[a,b]"
    return ruled(Rule(kind, ((kind, lambda value: all(isinstance(one, str) for one in value)),)))


def paths_by_name() -> Any:
    """Paths by names that the user chooses."""
    return ruled(Rule("a path", (("a path", lambda value: isinstance(value, str)),), text=True, each=True))


def choices_by_name(words: Sequence[str]) -> Any:
    """One of some words by names that the user chooses."""
    rule = f"one of {', '.join(words)}"
    return ruled(Rule(rule, ((rule, lambda value: value in words),), each=True))


def texts_by_name() -> Any:
    """Texts for people by names that the user chooses."""
    return ruled(Rule("text", (("text", lambda value: isinstance(value, str)),), text=True, each=True))


def word_list() -> Any:
    """A list of words."""
    return ruled(Rule("a list, as {key}=[{value}]"))


def text_list() -> Any:
    """A list of texts, taken as they are; null where there are none."""
    kind = "a list of texts, as {key}=['a red circle','a blue star']"
    return ruled(Rule(kind, ((kind, lambda value: bool(value)),), literal=True), default=None)


def region_list() -> Any:
    """A list of parts of a picture with prompts of their own; `sampling.regions.Region` says what each must be."""
    kind = "a list, as {key}=[{box: [0, 0, .5, 1], prompt: '...', strength: 1}]"
    return ruled(Rule(kind, ((kind, lambda value: isinstance(value, list)),), literal=True))


def one_seed() -> Any:
    """A seed."""
    return whole(least=0, most=MOST_SEED)


def seed_list() -> Any:
    """A list of seeds."""
    kind = "a list of whole numbers from 0 on, as {key}=[0,1]"
    at_least_one: Limit = (
        "a list of at least one seed, each named once",
        lambda value: 0 < len(value) == len({*value}),
    )
    in_64_bits: Limit = (
        f"a list of seeds of at most {MOST_SEED}",
        lambda value: all(seed <= MOST_SEED for seed in value),
    )
    return ruled(Rule(kind, ((kind, lambda value: all(seed >= 0 for seed in value)), in_64_bits, at_least_one)))


def number_list(kind: str, holds: Callable[[Any], bool], default: Sequence[float] | None = None) -> Any:
    """A list of numbers for which something holds."""
    metadata = {"rule": Rule(kind, ((kind, holds),))}
    if default is None:
        return dataclasses.field(default=None, metadata=metadata)
    return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)


def groups_by_name(keys: str) -> Any:
    """Groups of keys by names that the user chooses."""
    return ruled(Rule(f"a group of keys, {keys}", each=True))


def by_name(kind: str, holds: Callable[[Any], bool]) -> Any:
    """Values by names that the user chooses."""
    return ruled(Rule(kind, ((kind, holds),), each=True, judges_null=True))


def anything(kind: str, holds: Callable[[Any], bool], default: Any = MISSING) -> Any:
    """A value of several kinds, for a field of the type Any."""
    return ruled(Rule(kind, ((kind, holds),), judges_null=True), default)


def opens(known: type, each: bool = False, default: Any = MISSING) -> Any:
    """A mapping that takes keys beside the known ones: the arguments of what its `_target_` names."""
    return ruled(Rule("a group of keys", opens=known, each=each), default)


def group() -> Any:
    """A group of keys."""
    return ruled(Rule("a group of keys"))
