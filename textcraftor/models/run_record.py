"""`run.json`: what a run tuned, on which base, from which other runs; read as data, whoever wrote it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from textcraftor.errors import UsageError
from textcraftor.models.tuned import component_of, read_json, tuned_folders

FILE, OLD_FILE = "run.json", "conditioning.json"
FORMAT = 2
TUNED = "tuned"  # what a run's conditioning calls its own encoders


@dataclass(frozen=True)
class Base:
    """The model that a run tuned.

    Args:
        path: `model.path`, as it was given.
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
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
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
        (folder / FILE).write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2))

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """The record of a run; runs of format 1 wrote their conditioning alone.

        Raises:
            UsageError: there is none, or it is not as runs write it.
        """
        file = folder / FILE
        if not file.exists():
            if not (folder / OLD_FILE).exists():
                raise UsageError(f"{folder} holds no {FILE}: give the folder of a finished run")
            return cls("", None, parts_in(folder), read_json(folder / OLD_FILE))
        stored = read_json(file)
        if stored.get("format") != FORMAT:
            raise UsageError(f"{file}: format={stored.get('format')} must be {FORMAT}: another TextCraftor wrote it")
        try:
            names = ("path", "sha256", "config")
            base = None if stored["base"] is None else Base(*(str(stored["base"][name]) for name in names))
            parents = [{"run": str(one["run"]), "weight": float(one["weight"])} for one in stored["parents"]]
            parts = {str(part): str(how) for part, how in stored["parts"].items()}
            return cls(str(stored["family"]), base, parts, dict(stored["conditioning"]), parents)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{file}: {error!r}; it must be as runs write it") from error


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a finished run."""
    return (folder / FILE).exists() or (folder / OLD_FILE).exists()


def parts_in(folder: Path) -> dict[str, str]:
    """What a folder holds, by diffusers' names."""
    return {component_of(path): "lora" if path.name.endswith("_lora") else "whole" for path in tuned_folders(folder)}
