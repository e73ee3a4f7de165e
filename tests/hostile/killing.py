"""Runs commands in processes of their own and kills them at a chosen point of their writing; forked from a server that
has everything imported, so that each takes no longer than its work."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path

import textcraftor.captioning.recaption
import textcraftor.captioning.upsample
import textcraftor.data.letters
import textcraftor.evaluation.compare
import textcraftor.evaluation.run
import textcraftor.evaluation.score
import textcraftor.inference.export
import textcraftor.inference.run
import textcraftor.training.train
import textcraftor.training.train_captioner
import textcraftor.training.tune_captions  # noqa: F401
from textcraftor.cli import main
from textcraftor.files import writing
from textcraftor.training import checkpoint

KILLED = 137
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


def run(arguments: list[str], folder: Path, kill_at: int | None = None) -> tuple[int, list[str], str]:
    """A command in a working folder.

    Args:
        kill_at: after so many points, from 1.

    Returns:
        its exit code, the points that it passed, and what it said.
    """
    log, points = folder / "log.txt", folder / "points.json"
    process = SERVER.Process(target=_child, args=(arguments, folder, kill_at, log, points))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, json.loads(points.read_text()) if process.exitcode == 0 else [], log.read_text()


def _child(arguments: list[str], folder: Path, kill_at: int | None, log: Path, points: Path) -> None:
    os.chdir(folder)
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
