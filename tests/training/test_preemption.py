"""A launcher's request to stop, as submitit sends it before a job's time is over: saved, passed on, gone on with."""

from __future__ import annotations

import json
import signal

import pytest

from tests.conftest import QUICK
from textcraftor.errors import EndedRunError
from textcraftor.training import run as running
from textcraftor.training.train import run

KEYS = [*QUICK, "rewards=aesthetic", "training.steps=3", "resume=auto"]


@pytest.fixture
def requeued():
    """Stands for submitit's handler, which queues the job again and ends it."""
    heard: list[int] = []

    def handler(number, frame):
        heard.append(number)
        raise SystemExit(1)

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
    with pytest.raises((SystemExit, EndedRunError)):
        run(configure("train", *KEYS, f"run_dir={folder}"), folder)
    assert requeued == [signal.SIGUSR2]
    reached = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert reached in (["step_000001"], ["step_000002"])
    run(configure("train", *KEYS, f"run_dir={folder}"), folder)
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert requeued == [signal.SIGUSR2]
