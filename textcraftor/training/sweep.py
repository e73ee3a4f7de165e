"""`textcraftor train -m`: at the end of a sweep, which of its jobs is the best, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from textcraftor.config.compose import keys
from textcraftor.files.reading import read_json, read_yaml, shaped
from textcraftor.files.writing import is_finished

MOST_SETTINGS = 4  # of a job that are shown
OWN = ("name", "run_dir", "resume")  # of each job, whatever the sweep is about
FIGURES = {"held_out": float, "stopped_by": [str]}


class BestJob(Callback):
    """Hydra calls it before the jobs of a sweep are launched and when all have ended, whatever launched them."""

    def on_multirun_start(self, config: DictConfig, **options: Any) -> None:
        if folder := config.hydra.launcher.get("submitit_folder"):  # a cluster's jobs print nothing here
            print(f"textcraftor: each job's output: {logs_in(str(folder))}", flush=True)

    def on_multirun_end(self, config: DictConfig, **options: Any) -> None:
        if line := best_job(Path(config.hydra.sweep.dir)):
            print(f"textcraftor: {line}")


def logs_in(folder: str) -> str:
    """Where submitit writes what jobs print, by its pattern for a job's folder: `%j` is the job's number."""
    job = folder.replace("%j", "<job>")
    return f"{job}/<job>_0_log.out, errors in <job>_0_log.err"


def best_job(sweep: Path) -> str:
    """The finished job whose `held_out` is highest, with what tells it from the others; empty where none is."""
    jobs = [folder for folder in sorted(sweep.glob("[0-9]*")) if is_finished(folder)]
    if not jobs:
        return ""
    figures = {job: shaped(job, read_json(job / "summary.json"), FIGURES) for job in jobs}
    settings = {job: different(job, jobs) for job in jobs}
    first, *others = sorted(jobs, key=lambda job: np.nan_to_num(figures[job]["held_out"], nan=-np.inf), reverse=True)
    line = f"best of {len(jobs)} jobs by held_out: {told(first, figures, settings)}"
    return f"{line}; next {told(others[0], figures, settings)}" if others else line


def told(job: Path, figures: Mapping[Path, Any], settings: Mapping[Path, Any]) -> str:
    """A job with its figure, and what it has that others have not."""
    chosen = [f"{key}={value}" for key, value in settings[job].items()]
    shown = " ".join([*chosen[:MOST_SETTINGS], *(["..."] if len(chosen) > MOST_SETTINGS else [])])
    ended = f", ended by the alarm of {', '.join(stopped)}" if (stopped := figures[job]["stopped_by"]) else ""
    return f"{job} with {figures[job]['held_out']:+.3f}{ended} ({shown})"


def different(job: Path, jobs: list[Path]) -> dict[str, Any]:
    """The settings of a job that another one has otherwise."""
    own, *all_of_them = [dict(keys(read_yaml(one / "config.yaml"))) for one in (job, *jobs)]
    plain = {key: value for key, value in own.items() if not isinstance(value, dict) and key not in OWN}
    return {key: value for key, value in plain.items() if any(one.get(key) != value for one in all_of_them)}
