"""The runs that `tuned.<name>=` names: what they tuned, and which noise levels it conditions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from textcraftor.errors import UsageError
from textcraftor.models.stable_diffusion import StableDiffusion
from textcraftor.models.tuning import load_tuned
from textcraftor.sampling.conditioning import ConditioningSchedule


def check_tuned(runs: Mapping[str, str]) -> None:
    """Refuse folders that hold no finished run."""
    for name, run in runs.items():
        if not (Path(run) / "conditioning.json").exists():
            raise UsageError(f"tuned.{name}={run} holds no conditioning.json: give the folder of a finished run")


def load_runs(model: StableDiffusion, runs: Mapping[str, str]) -> ConditioningSchedule:
    """Add what the runs tuned to a model; returns the schedule that they were tuned with, the original without any."""
    schedule = ConditioningSchedule.original()
    for run in runs.values():
        load_tuned(model, Path(run), "tuned")
        schedule = ConditioningSchedule(**json.loads((Path(run) / "conditioning.json").read_text()))
    return schedule
