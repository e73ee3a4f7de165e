"""Runs commands in processes of their own, and kills them at a chosen point of their writing; forked from a server that
has everything imported, so that each takes no longer than its work."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import textcraftor.captioning.recaption
import textcraftor.captioning.upsample
import textcraftor.data.letters
import textcraftor.enhancement.enhance
import textcraftor.evaluation.compare
import textcraftor.evaluation.rate
import textcraftor.evaluation.ratings
import textcraftor.evaluation.run
import textcraftor.evaluation.score
import textcraftor.inference.export
import textcraftor.inference.run
import textcraftor.training.train
import textcraftor.training.train_captioner
import textcraftor.training.train_reward
import textcraftor.training.tune_captions  # noqa: F401
from textcraftor.cli import main
from textcraftor.files import writing
from textcraftor.training import checkpoint

KILLED = 137
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Child:
    """A command at work, what it says so far, and the points of its writing once it has ended well."""

    process: multiprocessing.process.BaseProcess
    log: Path
    points: Path

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self) -> int:
        """Its exit code, negative where a signal ended it."""
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode


def start(
    arguments: list[str], folder: Path, kill_at: int | None = None, environment: Mapping[str, str] | None = None
) -> Child:
    """A command in a working folder.

    Args:
        kill_at: after so many points, from 1.
    """
    environment = {**(environment or {})}
    name = environment.get("RANK", "")
    log, points = folder / f"log{name}.txt", folder / f"points{name}.json"
    log.touch()
    process = SERVER.Process(target=_child, args=(arguments, folder, kill_at, log, points, environment))
    process.start()
    return Child(process, log, points)


def run(arguments: list[str], folder: Path, kill_at: int | None = None) -> tuple[int, list[str], str]:
    """A command to its end: its exit code, the points that it passed, and what it said."""
    child = start(arguments, folder, kill_at)
    code = child.wait()
    return code, json.loads(child.points.read_text()) if code == 0 else [], child.log.read_text()


def _child(arguments: list[str], folder: Path, kill_at: int | None, log: Path, points: Path, environment: dict) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    met: list[str] = []

    def passed(point: str, file: Path) -> None:
        met.append(f"{point} {file.name}")
        if len(met) == kill_at:
            os._exit(KILLED)

    writing.passed = checkpoint.passed = passed
    sys.argv = ["textcraftor", *arguments]
    main()
    points.write_text(json.dumps(met))
