"""A command's configuration from the YAML files and the overrides of the command line."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from textcraftor.config.overrides import check_keys, literal, split
from textcraftor.config.typed import typed
from textcraftor.config.words import unknown
from textcraftor.errors import UsageError, one_line

VERSION_BASE = "1.3"  # of Hydra's defaults
_COMPOSING = threading.Lock()  # Hydra's parts are not made for several threads


def config_dir() -> Path:
    """The folder of Hydra groups: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def groups() -> dict[str, list[str]]:
    """The groups that Hydra chooses among, and their files."""
    folders = [path for path in config_dir().iterdir() if path.is_dir()]
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def package_path(name: str) -> str:
    """The folder of one of our own packages."""
    if name.partition(".")[0] != "textcraftor":  # to look a package up runs what lies above it
        raise ValueError(f"package:{name} must begin with textcraftor: give its path")
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(f"package {name} cannot be imported")
    return str(Path(spec.origin).parent)


def register() -> None:
    """Tell OmegaConf of `${package:...}` and of `${opened:...}`, a path with `~` expanded, and Hydra of mappings that
    take any key."""
    OmegaConf.register_new_resolver("package", package_path, replace=True)
    OmegaConf.register_new_resolver("opened", lambda path: str(Path(path).expanduser()), replace=True)
    ConfigStore.instance().store("open", OmegaConf.create({}, flags={"struct": False}), group="schema")


def checked(command: str, overrides: Sequence[str]) -> list[str]:
    """Overrides of keys that the command has."""
    return check_keys(command, overrides, groups())


def compose(command: str, overrides: Sequence[str], values: Mapping[str, Any] | None = None) -> DictConfig:
    """The configuration of a command, typed.

    Args:
        values: plain ones by dotted key, set as they are after the overrides, in their order.

    Raises:
        UsageError: one line that says which key or value is wrong.
    """
    config = composed(command, overrides)
    with open_dict(config):
        for key, value in (values or {}).items():
            OmegaConf.update(config, key, literal(value), merge=False)
    return typed(command, config)


def composed(command: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a command as the YAML files and the overrides give it; its types are not checked yet.

    Raises:
        UsageError: an unknown key, or overrides that cannot be read.
    """
    overrides = checked(command, overrides)
    try:
        return _composed_by_hydra(command, overrides)
    except UsageError:
        raise
    except Exception as error:  # Hydra raises whatever its own code stumbles on where a value has another type
        raise refusal(command, overrides, error) from error


def _composed_by_hydra(command: str, overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes, without its `GlobalHydra`: that belongs to the program, which may use Hydra itself."""
    with _COMPOSING:
        setup_globals()
        if not isinstance(version.getbase(), version.Version):  # nobody has chosen one
            version.setbase(VERSION_BASE)
        loader = ConfigLoaderImpl(create_config_search_path(str(config_dir())))
        config = loader.load_configuration(command, list(overrides), RunMode.RUN, from_shell=False)
    with open_dict(config):
        del config["hydra"]
    return config


def refusal(command: str, overrides: Sequence[str], error: Exception) -> UsageError:
    """Hydra's words in one line, or what is wrong with the key that it does not know."""
    words = one_line(error).partition(" Config search path")[0]
    if not isinstance(error, HydraException | OmegaConfBaseException | ValueError):
        words = f"{' '.join(overrides)} cannot be composed: {type(error).__name__}: {words}"
    chosen = [override for override in overrides if split(override)[1].partition("@")[0] in groups()]
    try:
        composed = dict(keys(OmegaConf.to_container(_composed_by_hydra(command, chosen))))
    except Exception:  # the choice itself is wrong
        group = next((key for _, key, _ in map(split, chosen) if f"Could not override '{key}'" in words), None)
        return unknown(command, group) if group else UsageError(words)
    for sign, key, _ in map(split, overrides):
        if not sign and key not in composed and key in words:
            parts = key.split(".")
            above = [".".join(parts[:count]) for count in range(1, len(parts))]
            null = next((one for one in above if one in composed and composed[one] is None), None)
            return (
                UsageError(f"{key}: {null} is null; give {null}={{...}}") if null else unknown(command, key, composed)
            )
    return UsageError(words)


def keys(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a plain configuration and its value."""
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")
