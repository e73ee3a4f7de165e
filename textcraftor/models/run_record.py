"""`run.json`: what a run tuned, on which base, from which other runs; read as data, whoever wrote it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from textcraftor.assets import sha256_of
from textcraftor.errors import UsageError
from textcraftor.files.reading import read_json, shaped
from textcraftor.files.writing import write_json
from textcraftor.models.model import ORIGINAL
from textcraftor.models.tuned import COMPONENTS, component_of, tuned_folders

FILE, OLD_FILE = "run.json", "conditioning.json"
FORMAT = 2
TUNED = "tuned"  # what a run's conditioning calls its own encoders
MOST_TIMESTEP = 100_000
CONDITIONING = {"switch_timestep": int, "late": {str: float}, "early": {str: float}}
BASE = {"path": str, "sha256": str, "config": str}
SHAPE = {"family": str, "parts": {str: str}, "parents": [{"run": str, "weight": float}], "conditioning": CONDITIONING}


@dataclass(frozen=True)
class Base:
    """The model that a run tuned.

    Args:
        path: `model.path`, as it was given; empty for a pipeline that a Python program made of parts.
        sha256: of a local folder's index or of a single file; empty for a hub id.
        config: the name of its configuration, as `model=` takes it.
    """

    path: str
    sha256: str = ""
    config: str = ""

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> Base:
        """That of a configuration's `model`."""
        path, local = str(model["path"]), Path(str(model["path"])).expanduser()
        file = local / "model_index.json" if local.is_dir() else local
        digest = sha256_of(file) if path and file.is_file() else ""
        return cls(path, digest, str(model.get("name", "")))

    def is_same(self, other: Base) -> bool:
        """Whether two are one model: by their path, or by what lies there."""
        return self.path == other.path or (bool(self.sha256) and self.sha256 == other.sha256)


@dataclass(frozen=True)
class RunRecord:
    """What a run says of itself.

    Args:
        family: the class of its pipeline.
        parts: diffusers' names of what it tuned, each `whole` or `lora`.
        conditioning: which encoder conditions which noise level, as `ConditioningSchedule` has it.
        parents: runs that it began from, {run, weight}.
    """

    family: str
    base: Base | None
    parts: Mapping[str, str]
    conditioning: Mapping[str, Any]
    parents: Sequence[Mapping[str, Any]] = ()

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, {"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """The record of a run; runs of format 1 wrote their conditioning alone.

        Raises:
            UsageError: there is none, or no run wrote it like this.
        """
        file = folder / FILE
        if not file.exists():
            if not (folder / OLD_FILE).exists():
                raise UsageError(f"{folder} holds no {FILE}: give the folder of a finished run")
            return cls("", None, parts_in(folder), conditioning_in(folder / OLD_FILE, read_json(folder / OLD_FILE)))
        stored = read_json(file)
        if stored.get("format") != FORMAT:
            raise UsageError(f"{file}: format={stored.get('format')} must be {FORMAT}: another TextCraftor wrote it")
        record = shaped(file, stored, SHAPE)
        base = None if stored.get("base") is None else Base(**shaped(file, stored["base"], BASE, "base"))
        if unknown := next((part for part in record["parts"] if part not in COMPONENTS), None):
            raise UsageError(f"{file}: parts.{unknown} must be of {', '.join(COMPONENTS)}")
        if record["parts"] != parts_in(folder):
            raise UsageError(f"{file}: parts={record['parts']}, but the folder holds {parts_in(folder)}: copy it again")
        conditioning = conditioning_in(file, stored["conditioning"], "conditioning")
        return cls(record["family"], base, record["parts"], conditioning, record["parents"])


def conditioning_in(file: Path, stored: Any, key: str = "") -> dict[str, Any]:
    """Which encoder conditions which noise level, as `ConditioningSchedule` has it."""
    conditioning = shaped(file, stored, CONDITIONING, key)
    for stage in ("late", "early"):
        names, weights = set(conditioning[stage]), list(conditioning[stage].values())
        if not names or names - {TUNED, ORIGINAL} or not all(map(math.isfinite, weights)):
            raise UsageError(f"{file}: {stage} must give finite weights to {TUNED} or {ORIGINAL}, as runs write it")
    if not 0 <= conditioning["switch_timestep"] <= MOST_TIMESTEP:
        raise UsageError(
            f"{file}: switch_timestep={conditioning['switch_timestep']} must lie between 0 and {MOST_TIMESTEP}"
        )
    return conditioning


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a finished run."""
    return (folder / FILE).exists() or (folder / OLD_FILE).exists()


def parts_in(folder: Path) -> dict[str, str]:
    """What a folder holds, by diffusers' names."""
    return {component_of(path): "lora" if path.name.endswith("_lora") else "whole" for path in tuned_folders(folder)}
