"""Gradients that are accumulated over parts of a batch are those of the whole batch, for policies of every kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.conftest import QUICK
from textcraftor.toybox.world2.records import write_records
from textcraftor.training import train, tune_captions
from textcraftor.training.job import Job
from textcraftor.training.phases import Phases
from textcraftor.training.state import TrainingState

BATCH = 5  # parts of 2 do not divide it evenly
POLICIES = {
    "last_k": ("gradient.k=2",),
    "ddpo": ("gradient=ddpo",),
    "direct": ("gradient=direct",),  # from real pictures
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_records(folder, 16, seed=5)
    return folder


def keys(*chosen: str) -> list[str]:
    quick = [key for key in QUICK if not key.startswith(("gradient.k", "training.batch_size"))]
    return [*quick, f"training.batch_size={BATCH}", "watch.seeds=[0]", *chosen]


def of_batch(job: Job, state: TrainingState, micro_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a step would descend on, and its figures, so many prompts at a time."""
    state.plan = replace(state.plan, micro_batch=micro_batch)
    state.learn(0.0)
    figures, _ = job.objective.gradient(state, range(BATCH), BATCH, Phases(job.model.device))
    return torch.cat([parameter.grad.flatten() for parameter in state.parameters]).double(), figures


def assert_parts_add_up(job: Job, state: TrainingState) -> None:
    whole, figures = of_batch(job, state, BATCH)
    assert whole.norm() > 0
    parts, theirs = of_batch(job, state, 2)
    assert (parts - whole).norm() < 1e-3 * whole.norm()
    torch.testing.assert_close(theirs, figures, rtol=1e-4, atol=1e-3)  # standardised ones are rounded more


@pytest.mark.parametrize("policy", POLICIES)
def test_the_gradient_of_parts_is_that_of_the_batch(configure, world, tmp_path, policy):
    """Of plain rewards, and of normalised ones of which one has a target that some pictures have reached."""
    chosen = [*POLICIES[policy], "rewards=aesthetic", "+reward@rewards.second=clip"]
    if policy == "direct":
        chosen += [f"data.path={world}", "data.held_out=6", "captions.p=0"]
    job = train.load(configure("train", *keys(*chosen)), tmp_path)
    state, rewards, method = job.state(), job.rewards, job.objective
    assert_parts_add_up(job, state)

    prompts, seeds = method.draw(0, BATCH)
    clean = method.draw.clean(0, BATCH, range(BATCH))
    with torch.no_grad():
        scores = rewards(method.pictures(prompts, seeds, 0, None, Phases(job.model.device), clean)[0], prompts)
    rewards.normalize = True
    rewards.start(scores)
    _, low, high, *_ = scores["aesthetic"].sort().values
    assert high - low > 1e-3, "rounding decides who has reached the target"
    rewards.targets["aesthetic"] = ((low + high) / 2).item()
    assert_parts_add_up(job, state)


def test_so_is_that_of_captions(configure, world, tmp_path):
    """Whose loss weighs each example by its noise level."""
    chosen = [f"data.path={world}", "data.held_out=6", "captions.p=0", "tune=denoiser_lora", "rewards=clip"]
    given = (key for key in keys(*chosen) if not key.startswith("training.sampling"))
    job = tune_captions.load(configure("tune-captions", *given), tmp_path)
    assert_parts_add_up(job, job.state())
