"""Makes what a configuration names by `_target_`."""

from __future__ import annotations

import functools
import pkgutil
from typing import Any

from omegaconf import OmegaConf

from textcraftor.config.targets import OWN
from textcraftor.errors import UsageError


def made(node: Any, **more: Any) -> Any:
    """What `_target_` makes of a node's other keys; null for null.

    Hydra's `instantiate` resolves a text twice, so it would look up a `${...}` that a user wrote. Here every value is
    resolved once.

    Args:
        more: further arguments.
    """
    values: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if values is not None and not isinstance(values, dict):
        raise UsageError(f"{values} must be a group of keys, with _target_ for what is made of them")
    return _made(values if values is None else {**values, **more})


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return [_made(one) for one in value]
    if not isinstance(value, dict):
        return value
    values = {name: _made(one) for name, one in value.items() if name not in OWN}
    if "_target_" not in value:
        return values
    target = pkgutil.resolve_name(value["_target_"])
    return functools.partial(target, **values) if value.get("_partial_") else target(**values)
