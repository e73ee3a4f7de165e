"""What has to be run for claims: each job once, in a folder named by its configuration and weights.

A job whose folder is finished is never run again, whichever claim asks for it: more seeds, another margin or a further
claim go on from what is there, and a changed weight, prompt file or key makes another folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from textcraftor.assets import sha256_of
from textcraftor.config.claims import MAKING, PLACE, SEEDED, Run
from textcraftor.config.compose import compose
from textcraftor.config.overrides import as_typed
from textcraftor.files.writing import is_finished

# Keys that change where or when something is computed, but not its results.
NEUTRAL = ("run_dir", "name", "base", "shard", "resume", "tracker", "dry_run")


@dataclass(frozen=True)
class Job:
    """One command with its keys.

    Args:
        folder: what it writes; its name is the job's fingerprint.
        needs: the jobs whose folders its keys name.
    """

    command: str
    keys: tuple[str, ...]
    folder: Path
    needs: tuple[Job, ...] = field(default=(), repr=False)

    @property
    def is_done(self) -> bool:
        """Whether all of it is there."""
        return is_finished(self.folder)

    def with_needs(self) -> Iterator[Job]:
        """The jobs that it needs, and itself last."""
        for need in self.needs:
            yield from need.with_needs()
        yield self

    def waiting(self) -> Iterator[Job]:
        """Those of them that are to be done: what is done needs nothing more."""
        if not self.is_done:
            for need in self.needs:
                yield from need.waiting()
            yield self


@dataclass(frozen=True)
class Workshop:
    """Makes jobs.

    Args:
        folder: that holds all their folders.
        keys, shrink: of every job by command; those of `shrink` come after the job's own.
        records: what draws captioned pictures, see `config.claims.Records`.
        device: that they compute on.
    """

    folder: Path
    keys: Mapping[str, Sequence[str]]
    shrink: Mapping[str, Sequence[str]]
    records: Mapping[str, Any]
    device: str

    def job(self, command: str, keys: Sequence[str], places: Mapping[str, Job], base: Job | None = None) -> Job:
        """A job.

        Args:
            keys: in which `{name}` stands for the folder of one of `places`.
            base: the evaluation that this one is compared with; the results do not depend on it.
        """
        device = () if command in MAKING else (f"device={self.device}",)
        whole = (*self.keys.get(command, ()), *keys, *self.shrink.get(command, ()), *device)
        drawn = [f"{name}={value}" for name, value in self.records.items()] if command == "records" else []
        names = {name: job.folder.name for name, job in places.items()}
        folder = self.folder / fingerprint(command, (*whole, *drawn), names)
        filled = [with_places(key, {name: str(job.folder) for name, job in places.items()}) for key in whole]
        against = [] if base is None else [f"base={base.folder}"]
        needs = (*places.values(), *([] if base is None else [base]))
        return Job(command, (*filled, *against, f"run_dir={folder}"), folder, needs)

    def run(self, runs: Mapping[str, Run], name: str, seed: int, rates: Mapping[str, float]) -> Job:
        """A run of a claim.

        Args:
            seed: of training.
            rates: the learning rates that were chosen, by run.
        """
        spec = runs[name]
        needed = PLACE.findall(" ".join(spec.keys))
        places = {other: self.run(runs, other, seed, rates) for other in runs if other in needed and other != name}
        rate = [f"optim.lr={rates[name]:g}"] if name in rates else []
        seeded = [f"seed={seed}"] if spec.command in SEEDED else []
        return self.job(spec.command, [*spec.keys, *rate, *seeded], places)


def with_places(key: str, places: Mapping[str, str]) -> str:
    """A key in which names of places are replaced by what they stand for; other braces stay."""
    return PLACE.sub(lambda match: places.get(match[1], match[0]), key)


def fingerprint(command: str, keys: Sequence[str], places: Mapping[str, str]) -> str:
    """What tells a job from others: a hash of its whole configuration, in which files and folders stand for what they
    hold and other jobs' folders for their fingerprints.

    Args:
        places: the fingerprints of the jobs whose folders `{name}` stands for in the keys.
    """
    numbers = [key for key in keys if key.startswith(("seed=", "optim.lr="))]
    others = tuple(key for key in keys if key not in numbers)  # composed once for all of these, which takes a while
    settings: Any = list(others) if command == "records" else _settings(command, others)
    text = json.dumps([command, numbers, _contents(settings, places)], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=4096)
def _settings(command: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """A command's configuration without the keys that do not change its results."""
    config: Any = OmegaConf.to_container(compose(command, as_typed(command, keys)), resolve=True)
    return {name: value for name, value in config.items() if name not in NEUTRAL}


def _contents(value: Any, places: Mapping[str, str]) -> Any:
    """A value in which paths stand for what they hold."""
    if isinstance(value, Mapping):
        return {name: _contents(one, places) for name, one in value.items()}
    if isinstance(value, list):
        return [_contents(one, places) for one in value]
    if not isinstance(value, str):
        return value
    if os.sep in value and len(value) < 1000 and Path(value).expanduser().exists():
        return content_hash(Path(value).expanduser().resolve())
    return with_places(value, places)


@functools.cache
def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files."""
    if path.is_file():
        return sha256_of(path)
    files = {str(file.relative_to(path)): content_hash(file) for file in sorted(path.rglob("*")) if file.is_file()}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()
