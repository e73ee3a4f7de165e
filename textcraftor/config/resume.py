"""`train resume=<run folder>`: the run's own configuration, and the few keys of it that may change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from textcraftor.config.overrides import literal
from textcraftor.config.typed import typed
from textcraftor.errors import UsageError

# What rescues a run that meets the same trouble again each time that it is resumed.
RESCUE = ("memory.budget", "training.skip_broken")
MAY_CHANGE = ("training.steps", "training.checkpoint_every", "device", "tracker", *RESCUE)
TRUSTED = ("textcraftor.", "torch.optim.")  # what a run folder may name to be imported


def resumed_config(command: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of the run that `resume=` names, with what may change changed.

    Raises:
        UsageError: no such run, a key that may not change, a value that it cannot have, or code of others that the
            folder names.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    given = {override.key_or_group: read(override.value()) for override in parsed}
    folder = Path(str(given.pop("resume")))
    file = folder.expanduser() / "config.yaml"
    if not file.exists():
        raise UsageError(f"resume={folder} holds no config.yaml: give the folder of a run")
    stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    config = OmegaConf.create(literal(stored))
    different = [key for key, value in given.items() if key not in MAY_CHANGE and at(config, key) != value]
    if different:
        raise UsageError(
            f"resume={folder}: {', '.join(different)} cannot change in a run that has begun; "
            f"{', '.join(MAY_CHANGE)} can. Leave the others out, or start a new run"
        )
    for key, target in targets(stored):
        if given.get(key) != target and not is_trusted(target):
            raise UsageError(
                f"resume={folder}: its config.yaml names code that is not TextCraftor's; if you trust it, "
                f"repeat {key}={target}"
            )
    config.resume = config.run_dir = literal(str(folder))
    try:
        typed(command, config)
    except UsageError as error:
        raise UsageError(f"resume={folder}: its config.yaml is not of this version: {error}") from error
    for key in MAY_CHANGE:
        if key in given:
            OmegaConf.update(config, key, given[key])
    return typed(command, config)


def read(value: Any) -> Any:
    """A value of the command line as a configuration holds it."""
    return OmegaConf.create({"value": value}).value


def at(config: DictConfig, key: str) -> Any:
    """The value of a dotted key."""
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def is_trusted(target: str) -> bool:
    """Whether a target is what it says: `textcraftor.cli.os.system` begins well, and is another's."""
    return target.startswith(TRUSTED) and get_object(target).__module__.startswith(TRUSTED)


def targets(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every `_target_` below a node with its key."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    for name, value in node.items() if isinstance(node, dict) else ():
        if name == "_target_":
            yield f"{key}{name}", str(value)
        else:
            yield from targets(value, f"{key}{name}.")
