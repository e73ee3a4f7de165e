"""Which model the commands take where only a run is named: the one that the run tuned."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from textcraftor.errors import UsageError
from textcraftor.files.reading import read_yaml, shaped
from textcraftor.models.run_record import Base, RunRecord


def base_overrides(run: Path, groups: Path, package_path: Callable[[str], str]) -> list[str]:
    """The overrides `model=` and, where that is not its own, `model.path=` that mean a run's base.

    Args:
        groups: the folder of model configurations.
        package_path: where a package lies whose name a configuration gives.
    """
    base = RunRecord.read(run).base or base_of_old(run)
    if base.config and not base.path:
        raise UsageError(
            f"{run} was tuned on a pipeline of a Python program: give model= or model.path=, and any_base=true"
        )
    if base.path and Path(base.path).expanduser().resolve().is_relative_to(run.resolve()):
        raise UsageError(f"{run}: its base {base.path} lies within the run itself: give model= or model.path=")
    paths = model_paths(groups, package_path)
    name = base.config or configuration_of(base, paths)
    if name not in paths:
        return [f"model.path={base.path}"] if base.path else []
    return [f"model={name}"] if _same(paths[name], base) else [f"model={name}", f"model.path={base.path}"]


def model_paths(groups: Path, package_path: Callable[[str], str]) -> dict[str, str]:
    """The path of each model that has a configuration, by the configuration's name."""
    return {file.stem: _path_of(file, package_path) for file in sorted(groups.glob("*.yaml"))}


def configuration_of(base: Base, paths: Mapping[str, str]) -> str:
    """The name of the configuration whose model is this one; empty where there is none."""
    return next((name for name, path in paths.items() if _same(path, base)), "")


def base_of_old(run: Path) -> Base:
    """The base of a run of format 1, which wrote it into its configuration alone."""
    file = run / "config.yaml"
    if not file.is_file():
        return Base("")
    return Base.of({"path": shaped(file, read_yaml(file), {"model": {"path": str}})["model"]["path"]})


def _same(path: str, base: Base) -> bool:
    """Whether a configuration's path means this base; a package may lie elsewhere than where the run was made."""
    return Base.of({"path": path}).is_same(base)


def _path_of(file: Path, package_path: Callable[[str], str]) -> str:
    """The `path` of a model's configuration."""
    settings: Mapping[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    path = str(settings.get("path", ""))
    return re.sub(r"\$\{package:([\w.]+)\}", lambda match: package_path(match[1]), path)
