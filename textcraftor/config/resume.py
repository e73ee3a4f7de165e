"""`train resume=<run folder>`: the run's own configuration, and the few keys of it that may change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from textcraftor.config.compose import config_dir
from textcraftor.config.objects import GIVEN, GIVEN_PIPELINE
from textcraftor.config.overrides import literal
from textcraftor.config.targets import OWN
from textcraftor.config.typed import typed
from textcraftor.errors import UsageError, one_line
from textcraftor.files.reading import check_confined, read_yaml

# What rescues a run that meets the same trouble again each time that it is resumed.
RESCUE = ("memory.budget", "training.skip_broken")
MAY_CHANGE = ("training.steps", "training.checkpoint_every", "device", "tracker", "processes.patience", *RESCUE)
AUTO = "auto"  # the value of `resume` that goes on with what is in run_dir, and else begins
PLACES = "memory.places."  # each part's may change too
# Of the torch package, what a run's folder may name to be imported; the rest is what our own configurations name.
OPTIMISERS = {
    f"torch.optim.{name}" for name in ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SGD", "RMSprop", "Adagrad")
}


def resumed_config(command: str, overrides: Sequence[str], values: Mapping[str, Any] | None = None) -> DictConfig:
    """The configuration of the run that `resume=` names, with what may change changed.

    Args:
        values: plain ones by dotted key, beside the overrides.

    Raises:
        UsageError: no such run, a key that may not change, a value that it cannot have, or code of others that the
            folder names.
    """
    if flag := next((one for one in overrides if one.startswith("-")), None):
        raise UsageError(f"{flag}: resume= goes on with one run: leave {flag} out")
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UsageError(one_line(error)) from error
    given = {override.key_or_group: read(override.value()) for override in parsed}
    given |= {key: value for key, value in (values or {}).items() if value != {}}
    folder = Path(str(given.pop("resume")))
    file = folder.expanduser() / "config.yaml"
    if not file.exists():
        raise UsageError(f"resume={folder} holds no config.yaml: give the folder of a run")
    check_confined(folder.expanduser())
    stored = read_yaml(file)
    config = OmegaConf.create(literal(stored))
    may_change = {key for key in given if key in MAY_CHANGE or key.startswith(PLACES)}
    different = [key for key, value in given.items() if key not in may_change and at(config, key) != value]
    if different:
        raise UsageError(
            f"resume={folder}: {', '.join(different)} cannot change in a run that has begun; "
            f"{', '.join(MAY_CHANGE)} can. Leave the others out, or start a new run"
        )
    known = known_targets()
    for key, value in instructions(stored):
        if key.rpartition(".")[2] not in OWN:
            raise UsageError(f"resume={folder}: {key}={value} in its config.yaml is not what runs write: take it away")
        if not key.endswith("_target_") or given.get(key) == value:
            continue
        if value in (GIVEN, GIVEN_PIPELINE):
            what = at(config, key.replace("_target_", "what"))
            raise UsageError(
                f"resume={folder}: {key.rpartition('.')[0]} was {what}, an object of a Python program: "
                "textcraftor.train(resume=...) goes on where it is given again; the command line cannot give it"
            )
        if value not in known.get(place_of(key), ()):
            raise UsageError(
                f"resume={folder}: its config.yaml names code that is not TextCraftor's; if you trust it, "
                f"repeat {key}={value}"
            )
    config.resume = config.run_dir = literal(str(folder))
    try:
        typed(command, config)
    except UsageError as error:
        raise UsageError(f"resume={folder}: its config.yaml is not of this version: {error}") from error
    for key in may_change:
        OmegaConf.update(config, key, given[key], force_add=True)
    return typed(command, config)


def read(value: Any) -> Any:
    """A value of the command line as a configuration holds it."""
    return OmegaConf.create({"value": value}).value


def at(config: DictConfig, key: str) -> Any:
    """The value of a dotted key."""
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def known_targets() -> dict[str, set[str]]:
    """The import paths in our own configurations, by their key; and torch's optimisers."""
    targets = {"optim._target_": set(OPTIMISERS)}
    for file in config_dir().rglob("*.yaml"):
        group = "" if file.parent == config_dir() else f"{file.parent.name}."
        for key, value in instructions(yaml.safe_load(file.read_text(encoding="utf-8"))):
            if key.endswith("_target_"):
                targets.setdefault(f"{group}{key}", set()).add(value)
    return targets


def place_of(key: str) -> str:
    """Where in our configurations a key of a run's stands: a scorer may have any name."""
    return re.sub(r"^rewards\.[^.]+\.", "reward.", key)


def instructions(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every key below a node that tells Hydra what to make and how, `_target_` and its like, with its value."""
    if isinstance(node, list):
        node = {str(number): one for number, one in enumerate(node)}
    for name, value in node.items() if isinstance(node, dict) else ():
        if name.startswith("_") and name.endswith("_"):
            yield f"{key}{name}", str(value)
        yield from instructions(value, f"{key}{name}.")
