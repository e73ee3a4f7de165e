"""A launcher's request to stop, as submitit sends it before a job's time is over: saved, passed on, gone on with."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.conftest import QUICK
from textcraftor.cli import join_launch
from textcraftor.errors import QueuedAgainError
from textcraftor.training import run as running
from textcraftor.training.train import run

KEYS = [*QUICK, "rewards=aesthetic", "training.steps=3", "resume=auto"]


@pytest.fixture
def requeued():
    """Stands for submitit's handler, which queues the job again and ends it."""
    heard: list[int] = []

    def handler(number, frame):
        heard.append(number)
        raise SystemExit(144)

    before = signal.signal(signal.SIGUSR2, handler)
    yield heard
    signal.signal(signal.SIGUSR2, before)


def test_a_job_that_is_queued_again_goes_on_where_it_was(configure, tmp_path, monkeypatch, requeued):
    """The launcher hears the signal once the checkpoint is there; the same command then takes the remaining steps."""
    folder, written = tmp_path / "run", running.MetricsFile.write

    def preempted(metrics, step, figures):
        written(metrics, step, figures)
        if step == 1 and not requeued:
            signal.raise_signal(signal.SIGUSR2)
            assert requeued == [], "only noted until the step is done"

    monkeypatch.setattr(running.MetricsFile, "write", preempted)
    with pytest.raises(QueuedAgainError, match="144"):
        run(configure("train", *KEYS, f"run_dir={folder}"), folder)
    assert requeued == [signal.SIGUSR2]
    reached = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert reached in (["step_000001"], ["step_000002"])
    run(configure("train", *KEYS, f"run_dir={folder}"), folder)
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert requeued == [signal.SIGUSR2]


def test_submitits_tasks_become_processes_of_one_launch(monkeypatch):
    """Each learns its rank from submitit's own variables; a single task, or one that torchrun started, stays alone."""
    for name, value in {"JOB_ID": "7", "NTASKS": "2", "JOB_NUM_NODES": "1", "GLOBALID": "1", "LOCALID": "1"}.items():
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", value)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    names = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "CUDA_VISIBLE_DEVICES",
    )
    for name in names:
        monkeypatch.setenv(name, "")  # so that what is set here goes afterwards
        monkeypatch.delenv(name)
    join_launch()
    assert [os.environ[name] for name in names[:4]] == ["1", "2", "1", "2"]
    monkeypatch.setenv("RANK", "5")
    join_launch()
    assert os.environ["RANK"] == "5"
