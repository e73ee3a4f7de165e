"""Objects of the calling Python program where configurations name what is made by an import path.

A function or class that can be imported is named by its path, like any other. Whatever else a program gives, a module,
a closure, a function of a notebook, a loaded pipeline, is named by `given` and the key that it was given for: the
configuration stays data, can be read back, and says what it lacks.
"""

from __future__ import annotations

import contextlib
import pkgutil
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from textcraftor.errors import UsageError

# By key; of a call in one thread, and unknown to those in others.
_GIVEN: ContextVar[Mapping[str, Any]] = ContextVar("objects of the calling program", default={})  # noqa: B039


@contextlib.contextmanager
def providing(objects: Mapping[str, Any]) -> Iterator[None]:
    """Within, `given` knows these objects by the keys that they were given for."""
    before = _GIVEN.set({**_GIVEN.get(), **objects})
    try:
        yield
    finally:
        _GIVEN.reset(before)


def given(key: str, what: str) -> Any:
    """The object that the calling program gave for a key.

    Args:
        what: the object was, for people.

    Raises:
        UsageError: it gave none; a command line never does.
    """
    if key not in _GIVEN.get():
        raise UsageError(
            f"{key} was {what}, an object of a Python program, which no command line can give: call TextCraftor from "
            "Python and give it again"
        )
    return _GIVEN.get()[key]


# What a configuration names where a program gave an object: a reward, a pipeline.
GIVEN, GIVEN_PIPELINE = f"{given.__module__}.{given.__name__}", "textcraftor.models.loading.given_pipeline"


def target_of(key: str, value: Any) -> dict[str, Any]:
    """What a configuration says of an object: how it is made by an import path, or that it was given for a key."""
    path = path_of(value)
    if path is None:
        return {"_target_": GIVEN, "_partial_": False, "key": key, "what": description(value)}
    return {"_target_": path, "_partial_": not isinstance(value, type)}


def path_of(value: Any) -> str | None:
    """The import path that leads to this very function or class from any program; None where there is none."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not (module and name) or module == "__main__":
        return None
    try:
        return f"{module}.{name}" if pkgutil.resolve_name(f"{module}.{name}") is value else None
    except (ImportError, AttributeError, ValueError):
        return None


def description(value: Any) -> str:
    """An object in a few words: the name of a function, the class of anything else."""
    named = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{named}" if named else f"a {type(value).__qualname__}"
