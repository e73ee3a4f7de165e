"""Two processes over gloo: one gradient with one process's, a resume, and a failure that ends both."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.children import Child, start
from tests.conftest import QUICK, ROOT
from textcraftor.training.train import run

SETTINGS = (
    *QUICK,
    "training.steps=1",
    "training.batch_size=5",  # does not divide evenly: one process has three prompts, the other two
    "rewards=aesthetic",
    "normalize_rewards=true",
    "training.warmup=0",
    "gradient.k=1",  # longer chains amplify what batches of another size round differently, to 1e-5 and more
)


def launch(count: int, *arguments: str, cwd: Path) -> list[Child]:
    """A command in so many processes, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "ACCELERATE_USE_CPU": "true"}
    shared |= {"WORLD_SIZE": f"{count}", "LOCAL_WORLD_SIZE": f"{count}", "OMP_NUM_THREADS": "1"}
    own = [shared | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} for rank in range(count)]
    return [start([*arguments], cwd, environment=environment) for environment in own]


def processes(count: int, *arguments: str, cwd: Path) -> list[str]:
    """The same to its end; what each process said."""
    children = launch(count, *arguments, cwd=cwd)
    codes, logs = [child.wait() for child in children], [child.log.read_text() for child in children]
    assert codes == [0] * count, "\n".join(logs)
    return logs


def checkpoint(folder: Path, step: int) -> dict:
    return torch.load(folder / "checkpoints" / f"step_{step:06d}" / "state.pt", weights_only=True)


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).double()


def first_moments(*folders: Path) -> list[torch.Tensor]:
    """Adam's after one step: the clipped gradient, scaled."""
    states = [checkpoint(folder, 1)["optimizer"]["state"].values() for folder in folders]
    return [flat(state["exp_avg"] for state in one) for one in states]


@pytest.mark.usefixtures("_one_thread")
def test_two_processes_have_one_processs_gradient_and_resume(configure, tmp_path):
    """The first moments after one step are the clipped gradient: relative difference below 1e-5."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    run(configure("train", *SETTINGS, f"run_dir={alone}"), alone)
    processes(2, "train", *SETTINGS, f"run_dir={both}", cwd=tmp_path)
    ours, theirs = first_moments(alone, both)
    assert (ours - theirs).norm() < 1e-5 * ours.norm()
    one, two = (json.loads((folder / "summary.json").read_text())["before"] for folder in (alone, both))
    assert one.keys() == two.keys()
    assert all(abs(one[name] - two[name]) < 1e-4 for name in one), "shared evaluation differs"
    assert (both / "checkpoints" / "step_000001" / "process_1.pt").exists()

    processes(2, "train", f"resume={both}", "training.steps=2", cwd=tmp_path)
    assert [json.loads(line)["step"] for line in (both / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def failing(images, prompts):
    """A scorer that breaks in the second process once training has begun."""
    if os.environ.get("RANK") == "1" and torch.is_grad_enabled():
        raise RuntimeError("the second process's own reason")
    return images.mean((1, 2, 3))


def test_a_failing_process_ends_the_others_with_its_message(tmp_path):
    named = ["_target_=tests.training.test_processes.failing", "_partial_=true"]
    own = ["+rewards.red.weight=1", *(f"+rewards.red.reward.{part}" for part in named)]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", "-m", "textcraftor", "train", *SETTINGS, *own]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    began, told = time.monotonic(), {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([*command, f"run_dir={tmp_path / 'failing'}"], timeout=300, **told)
    assert done.returncode != 0
    assert "the second process's own reason" in done.stderr
    assert time.monotonic() - began < 120
