"""Checkpoints: whole or not there, newest few kept, every byte checked before use."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from textcraftor.assets import sha256_of
from textcraftor.errors import UsageError
from textcraftor.files.reading import read_json, shaped
from textcraftor.files.writing import is_finished, passed, replacing, write_json, write_text
from textcraftor.training.processes import processes_of_this_run
from textcraftor.training.state import TrainingState

SUMS = "sha256.json"


class Checkpoints:
    """A run's `checkpoints/` folder: one folder a step with `state.pt`, each process's `process_<rank>.pt`, and sums.

    Args:
        folder: of the run.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder / "checkpoints", keep

    def save(self, state: TrainingState, config: str) -> None:
        """Write under another name, then rename: what is there under its own name is whole.

        Raises:
            UsageError: no room, or no right to write; nothing half-written remains.
        """
        processes = processes_of_this_run()
        final = self.folder / f"step_{state.step:06d}"
        partial = final.with_suffix(".partial")
        try:
            partial.mkdir(parents=True, exist_ok=True)
            _write(state.process_state(), partial / f"process_{processes.process_index}.pt")
            processes.wait_for_everyone()
            if processes.is_main_process:
                _write({**state.state_dict(), "processes": processes.num_processes}, partial / "state.pt")
                write_text(partial / "config.yaml", config)
                sums = {file.name: sha256_of(file) for file in sorted(partial.iterdir())}
                write_json(partial / SUMS, sums)
                if final.exists():
                    shutil.rmtree(final)
                passed("written", final)
                partial.rename(final)
                passed("done", final)
                for old in self.steps()[: -self.keep]:
                    shutil.rmtree(old)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            good = self.steps()
            last = f"{good[-1]} is the last good one" if good else "there is none yet"
            raise UsageError(f"checkpoint {final} could not be written ({_first_line(error)}); {last}") from error
        processes.wait_for_everyone()

    def steps(self) -> list[Path]:
        """The folders of whole checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step_*") if re.fullmatch(r"step_[0-9]{6,9}", path.name))

    def newest(self) -> Path | None:
        """The newest checkpoint, if the run got as far as one.

        Raises:
            UsageError: it is damaged; says which one is not.
        """
        steps = self.steps()
        if not steps:
            return None
        if damage := _damage(steps[-1]):
            whole = [path for path in steps if not _damage(path)]
            remedy = f"delete it to go on from {whole[-1].name}" if whole else "no other one is whole: start again"
            raise UsageError(f"resume: {steps[-1]} is damaged ({damage}); {remedy}")
        return steps[-1]

    def check_resume(self, steps: int) -> None:
        """Refuse to resume a run that has done all its steps, or whose newest checkpoint is damaged."""
        newest, summary, finished = self.newest(), self.folder.parent / "summary.json", is_finished(self.folder.parent)
        done = int(newest.name.removeprefix("step_")) if newest else 0
        if finished and shaped(summary, read_json(summary), {"stopped_by": [str]})["stopped_by"]:
            raise UsageError(f"resume={self.folder.parent}: an alarm ended the run at step {done}, see its report")
        if done > steps or (done == steps and finished):
            raise UsageError(
                f"resume={self.folder.parent}: the run is finished at step {done}; raise training.steps to go on"
            )

    def load(self, state: TrainingState) -> bool:
        """Bring a state to the newest checkpoint, this process's random states along with it; whether there is one."""
        path, processes = self.newest(), processes_of_this_run()
        for stale in self.folder.glob("*.partial"):
            shutil.rmtree(stale, ignore_errors=True)
        if path is None:
            return False
        try:
            stored = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
            if stored["step"] != int(path.name.removeprefix("step_")):
                raise ValueError(f"its step is {stored['step']}")
            state.load_state_dict(stored)
            # What learns is the same in every process and a batch's prompts and noise depend on its step alone, so that
            # the run may go on with more processes, or with fewer.
            own = path / f"process_{processes.process_index % int(stored['processes'])}.pt"
            state.load_process_state(torch.load(own, weights_only=True))
        except Exception as error:  # whatever others put into it
            raise UsageError(f"resume: {path} is not what runs write ({_first_line(error)}): take it away") from error
        return True


def _write(content: Any, file: Path) -> None:
    with replacing(file) as partial:
        torch.save(content, partial)


def _damage(folder: Path) -> str:
    """What is wrong with a checkpoint; nothing if every file is as it was written."""
    try:
        sums = shaped(folder / SUMS, read_json(folder / SUMS), {str: str})
    except UsageError:
        return f"{SUMS} cannot be read"
    if unknown := sorted({file.name for file in folder.iterdir()} - {*sums, SUMS}):
        return f"{SUMS} does not list {unknown[0]}"
    if "state.pt" not in sums:
        return f"{SUMS} does not list state.pt"
    for name, expected in sums.items():
        if Path(name).name != name:
            return f"{SUMS} names {name}"
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_of(folder / name) != expected:
            return f"{name} is truncated or altered"
    return ""


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
