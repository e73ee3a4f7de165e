"""What an import path in a configuration names, and whether it takes the arguments beside it."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from textcraftor.config.rules import shown
from textcraftor.errors import UsageError, one_line

OWN = ("_target_", "_partial_")  # keys that say what is made, and how
NUMBERS = ("int", "float", "bool")


def check_target(values: Mapping[str, Any], place: str) -> None:
    """Refuse an import path that cannot be loaded, and arguments that its target does not take.

    Args:
        values: `_target_` and the arguments.
        place: where they stand in the configuration.
    """
    target = str(values["_target_"])
    try:
        resolved = pkgutil.resolve_name(target)
    except Exception as error:  # whatever a module of others raises while it is imported
        raise UsageError(
            f"{place}._target_={target} cannot be loaded: {one_line(error)}: install its package, or name another"
        ) from error
    if not callable(resolved):
        raise UsageError(
            f"{place}._target_={target} is a {type(resolved).__name__}, which makes nothing: name a class or function"
        )
    taken = parameters_of(resolved)
    if strange := next((name for name in values if name.startswith("_") and name not in OWN), None):
        raise UsageError(
            f"{place}.{strange}={shown(values[strange])}: of such keys there are {' and '.join(OWN)}: leave it out"
        )
    for name, value in values.items() if taken is not None else ():
        if not name.startswith("_"):
            check_argument(target, taken or {}, f"{place}.{name}", value)


def check_argument(target: str, taken: Mapping[str, str], key: str, value: Any) -> None:
    """Refuse an argument that is not taken, and null for a number."""
    name = key.rpartition(".")[2]
    if name not in taken:
        raise UsageError(
            f"{key}={shown(value)}: {target} takes no {name}: leave it out with ~{key}; it takes {', '.join(taken)}"
        )
    if value is None and taken[name] in NUMBERS:
        raise UsageError(f"{key}=null must be of the type {taken[name]}: {target} cannot do without it")


def parameters_named(target: str) -> Mapping[str, str]:
    """The parameters of an import path's target, see `parameters_of`; none where it takes any."""
    return parameters_of(pkgutil.resolve_name(target)) or {}


def parameters_of(function: Any) -> dict[str, str] | None:
    """The parameters of a callable and their types; None where it takes any, or does not say."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return None
    return {name: getattr(one.annotation, "__name__", str(one.annotation)) for name, one in parameters.items()}
