"""A composed configuration, every value in its type: an impossible value is refused with the key, the value and the
rule, before anything is loaded."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException, ValidationError

from textcraftor.config.commands import SCHEMAS
from textcraftor.config.overrides import literal
from textcraftor.config.rules import RefusedError, Rule, shown
from textcraftor.config.schema import Key, key_of
from textcraftor.config.targets import check_target
from textcraftor.config.tune import rates_of
from textcraftor.config.words import unknown
from textcraftor.errors import UsageError, one_line


def typed(command: str, config: DictConfig) -> DictConfig:
    """The configuration of a command as its dataclass types it, with the learning rates that `auto` means.

    Raises:
        UsageError: an unknown key, a wrong type, null where there is none, a value outside its limits, values that
            exclude each other, a missing package, an argument that the target does not take.
    """
    settings = merged(command, SCHEMAS[command], config)
    build(command, settings, Key(SCHEMAS[command], Rule("")))
    if "tune" in settings:
        try:
            rates = rates_of(settings)
        except (AttributeError, TypeError, OmegaConfBaseException) as error:  # an interpolation to something else
            raise UsageError(f"tune or model.training.lr cannot be read: {one_line(error)}") from error
        for part, rate in rates.items():
            settings.tune[part].lr = rate
    return settings


def merged(command: str, schema: type, config: DictConfig, place: str = "") -> DictConfig:
    """A configuration in a dataclass's types.

    Args:
        place: its key in the command's.
    """
    try:
        settings = OmegaConf.merge(blank(schema), config)
    except OmegaConfBaseException as error:
        raise refusal(command, place, schema, config, error) from error
    assert isinstance(settings, DictConfig)
    return settings


@functools.cache
def blank(schema: type) -> DictConfig:
    """A dataclass's keys without values; merging copies it."""
    return OmegaConf.structured(schema)


def refusal(command: str, place: str, schema: type, config: DictConfig, error: OmegaConfBaseException) -> UsageError:
    """OmegaConf's error about a value, in one line: the key, the value and the rule."""
    inner = re.sub(r"\[.*", "", error.full_key or "")  # of a list, not of its elements
    key = joined(place, inner)
    if isinstance(error, ConfigKeyError):
        return unknown(command, key)
    known = key_of(schema, inner) if inner else None
    value = plain(config, inner)
    if known is None:
        return UsageError(one_line(error))
    if isinstance(value, float):
        value = str(value)  # 1000.0 is no whole number, and 1000 would be one
    return must_be(key, value, str(known.rule) + " for each name" * (known.rule.each and known.holds_names))


def must_be(key: str, value: Any, words: str) -> UsageError:
    """The key, the value and the rule."""
    filled = words.replace("{key}", key).replace("{value}", shown(value))
    return UsageError(f"{key}={shown(value)} must be {filled}")


def plain(config: DictConfig, key: str) -> Any:
    """A value as it was composed, as far as it can be read."""
    try:
        value = OmegaConf.select(config, key)
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return OmegaConf.select(OmegaConf.create(OmegaConf.to_container(config)), key)


def joined(place: str, name: str) -> str:
    """A dotted key."""
    return ".".join(part for part in (place, name) if part)


def build(command: str, node: DictConfig, key: Key, place: str = "") -> Any:
    """The object of a node, built from the inside out, so that each group refuses what it cannot be."""
    values = {str(name): value_of(command, node, str(name), key, place) for name in node}
    if not dataclasses.is_dataclass(key.kind):
        for name, value in values.items() if key.rule.each else ():
            if words := key.rule.broken(value):
                raise must_be(joined(place, name), value, words)
        return values
    try:
        return key.kind(**values)  # type: ignore[operator]
    except RefusedError as error:
        name, value, words = error.args
        raise must_be(joined(place, name), value, words) from error


def value_of(command: str, node: DictConfig, name: str, parent: Key, place: str) -> Any:
    """The value of one key of a node, its interpolations resolved, its own keys built."""
    at, key = joined(place, name), parent.child(name)
    assert key is not None
    try:
        value = node[name]
    except MissingMandatoryValue as error:
        raise UsageError(f"{at} is needed") from error
    except ValidationError as error:
        raise UsageError(f"{at} must be {key.rule}: {one_line(error)}") from error
    except OmegaConfBaseException as error:
        raise UsageError(f"{at}: {one_line(error)}") from error
    if isinstance(value, ListConfig):
        return OmegaConf.to_container(value, resolve=True)
    if not isinstance(value, DictConfig):
        return value
    if key.is_open and key.known:
        return opened(command, value, key.known, at)
    return build(command, value, key, at)


def opened(command: str, node: DictConfig, known: type, place: str) -> Mapping[str, Any]:
    """The values of an open mapping: its known keys in their types, and what `_target_` names must take all of them."""
    values: Any = OmegaConf.to_container(node, resolve=True)
    names = {field.name for field in dataclasses.fields(known)}
    own = OmegaConf.create({name: literal(value) for name, value in values.items() if name in names})
    typed_own = merged(command, known, own, place)
    build(command, typed_own, Key(known, Rule("")), place)
    for name in own:
        if type(typed_own[name]) is not type(own[name]):
            node[name] = literal(typed_own[name])
    if "_target_" in values:
        check_target(values, place)
    return values
