"""Processes that share a frozen denoiser and T5: one process's gradient, one plan, and a lost process is named."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch
from random_models import make_pipeline

from tests.conftest import PROMPTS, QUICK
from tests.training.test_processes import checkpoint, first_moments, flat, launch, processes
from textcraftor.training.train import run

SIDE = ["sampling.height=64", "sampling.width=64"]
SETTINGS = [*QUICK, "training.steps=1", "training.batch_size=5", "gradient.k=1", "training.warmup=0", *SIDE]
SHARED = ["memory.places.denoiser=sharded", "memory.places.text_encoder_3=sharded"]
SCORER = "rewards.tight.reward._target_=tests.training.test_sharing.tight"
refused: list[int] = []


def tight(images, prompts):
    """A scorer that finds no memory in the second process, the first time that it should teach."""
    if os.environ.get("RANK") == "1" and torch.is_grad_enabled() and len(images) > 1 and not refused:
        refused.append(len(images))
        raise torch.OutOfMemoryError("CUDA out of memory")
    return images.mean((1, 2, 3)) + images.square().mean((1, 2, 3))


@pytest.fixture
def keys(tmp_path) -> list[str]:
    """A small Stable Diffusion 3.5, whose first text encoder learns by LoRA."""
    make_pipeline("sd35_medium", tiny=True).save_pretrained(tmp_path / "base")
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, "a blue circle", "a large gray ring", "a green star"]))
    rewards = ["rewards=aesthetic", "rewards.aesthetic=null", "+rewards.tight.weight=1"]
    rewards += [f"+{SCORER}", "+rewards.tight.reward._partial_=true"]
    model = ["model=sd35_medium", f"model.path={tmp_path / 'base'}", f"prompts.path={tmp_path / 'prompts.txt'}"]
    return [*model, *SETTINGS, *rewards, "tune=text_encoder_lora"]


def learned(folder, step: int) -> torch.Tensor:
    return flat(checkpoint(folder, step)["learned"].values())


@pytest.mark.usefixtures("_one_thread")
def test_shares_give_one_processs_gradient_after_a_re_plan_together_and_on_other_numbers(
    configure, keys, tmp_path, request
):
    """First moments within 1e-5 with uneven rows, after the second process ran out of memory; then the run goes on with
    another number of processes (--long: with three) as it does with one; then one of two is killed, and the other says
    which."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    run(configure("train", *keys, f"run_dir={alone}"), alone)
    logs = processes(2, "train", *keys, *SHARED, f"run_dir={both}", cwd=tmp_path)
    assert "out of memory: accumulating gradients of 2 at a time" in logs[0], logs
    assert "memory: denoiser" in logs[0]
    assert logs[0].count("in shares on all processes") >= 2
    ours, theirs = first_moments(alone, both)
    assert ours.norm() > 0
    assert (ours - theirs).norm() < 1e-5 * ours.norm()

    further = ["training.steps=2", SCORER]
    long = request.config.getoption("--long")
    places = [] if long else ["memory.places.denoiser=resident", "memory.places.text_encoder_3=resident"]
    processes(3 if long else 1, "train", f"resume={both}", *further, *places, cwd=tmp_path)
    processes(1, "train", f"resume={alone}", *further, cwd=tmp_path)
    before, one, other = learned(alone, 1), learned(alone, 2), learned(both, 2)
    assert (one - other).norm() < 1e-3 * (one - before).norm()

    children = launch(2, "train", f"resume={both}", "training.steps=1000", SCORER, cwd=tmp_path)
    lines = both / "metrics.jsonl"
    while len(lines.read_text().splitlines()) < 4 and children[0].process.is_alive():
        time.sleep(0.1)
    children[1].send(signal.SIGKILL)
    assert children[0].wait() == 2
    said = children[0].log.read_text()
    assert "textcraftor: process 1 was lost in step" in said, said
    assert "goes on, with any number of processes" in said
    assert [json.loads(line)["step"] for line in lines.read_text().splitlines()][:3] == [1, 2, 3]
