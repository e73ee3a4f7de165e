"""Learning rates, step by step: closed formulas, what the optimiser really does, and what the figures tell."""

from __future__ import annotations

import json
import math

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn
from transformers import CLIPTextModel

from textcraftor.config.resume import resumed_config
from textcraftor.training.fitting import FitSettings, fit
from textcraftor.training.rates import SCHEDULES, LearningRates, share_of_rate
from textcraftor.training.train import run

STEPS, WARMUP, CYCLES = 20, 5, 3
FALLING = {  # by the share of the way from the end of the warm-up to the end of the training
    "constant": lambda way: 1.0,
    "constant_with_warmup": lambda way: 1.0,
    "linear": lambda way: 1 - way,
    "polynomial": lambda way: 1 - way,
    "cosine": lambda way: (1 + math.cos(math.pi * way)) / 2,
    "cosine_with_restarts": lambda way: (1 + math.cos(math.pi * (CYCLES * way % 1))) / 2,
}


def formula(schedule: str, step: int, warmup: int = WARMUP, steps: int = STEPS) -> float:
    """The share of its rate that a step has, counted from 0."""
    if step < warmup and schedule != "constant":
        return (step + 1) / warmup
    return FALLING[schedule](max(0, step - warmup) / (steps - warmup))


@pytest.mark.parametrize("warmup", [0, 1, WARMUP])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_optimiser_moves_by_the_formula_at_every_step(schedule, warmup):
    """Two groups of plain gradient descent on a slope of 1: each step's way is its rate."""
    weights = [nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weights[0]], "lr": 0.5}, {"params": [weights[1]], "lr": 2.0}])
    rates = LearningRates(optimizer, share_of_rate(schedule, warmup, STEPS, CYCLES))
    for step in range(STEPS):
        before = [weight.item() for weight in weights]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        rates.set(step)
        optimizer.step()
        ways = [start - weight.item() for start, weight in zip(before, weights, strict=True)]
        wanted = formula(schedule, step, warmup)
        assert wanted > 0, "a rate of 0 teaches nothing"
        assert ways == pytest.approx([0.5 * wanted, 2.0 * wanted], abs=1e-6), step


def test_restarts_come_back_to_the_whole_rate():
    """Three falls of five steps each, after five of warm-up."""
    share = share_of_rate("cosine_with_restarts", 5, 20, 3)
    tops = [step for step in range(5, 20) if share(step) == 1.0]
    assert tops == [5, 10, 15]
    assert share(14) == pytest.approx((1 + math.cos(math.pi * 4 / 5)) / 2)


@pytest.mark.parametrize(("steps", "cycles"), [(49, 49), (98, 49), (107, 107), (93, 31), (10, 10)])
def test_every_restart_has_the_whole_rate(steps, cycles):
    """49 * (1 / 49) is less than 1, by which a cycle began with a rate of 0."""
    share = share_of_rate("cosine_with_restarts", 0, steps, cycles)
    assert [share(step) for step in range(0, steps, steps // cycles)] == [1.0] * cycles


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warm_up_as_long_as_the_training_ends_with_the_whole_rate(schedule, steps):
    """As the default one of 10 steps in a training of 10: linear ended with 0, polynomial with a division by 0."""
    share = share_of_rate(schedule, steps, steps)
    rising = [(step + 1) / steps for step in range(steps)]
    assert [share(step) for step in range(steps)] == ([1.0] * steps if schedule == "constant" else rising)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_falls_is_what_diffusers_lets_fall(schedule):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    numbers = {"num_warmup_steps": WARMUP, "num_training_steps": STEPS, "num_cycles": CYCLES}
    theirs, ours = (
        get_scheduler(schedule, optimizer, **numbers).lr_lambdas[0],
        share_of_rate(schedule, WARMUP, STEPS, CYCLES),
    )
    falling = range(WARMUP, STEPS)
    assert [ours(step) for step in falling] == pytest.approx([theirs(step) for step in falling], abs=1e-6)


def test_a_warm_up_longer_than_the_training_only_rises():
    share = share_of_rate("cosine", 10, 4)
    assert [share(step) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def rates_in(folder) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["learning_rate/text_encoder"] for line in lines]


def test_one_step_of_the_default_warm_up_trains_and_tells_its_rate(model, go):
    """Adam's first step is its rate along the gradient's sign: a tenth of the rate here."""
    folder = go("one", "training.steps=1", "watch.every=1", "rewards=aesthetic", "optim.lr=1e-3", "tracker=null")
    assert rates_in(folder) == pytest.approx([1e-4])
    pairs = zip(
        model.encoders()["text_encoder"].parameters(),
        CLIPTextModel.from_pretrained(folder / "text_encoder").parameters(),
        strict=True,
    )
    moved = max((own - tuned).abs().max().item() for own, tuned in pairs)
    assert moved == pytest.approx(1e-4, rel=0.02)


def test_a_resumed_run_has_the_schedule_of_its_new_length_from_its_first_new_step(go):
    """Step 2 of 2 was near the end of a cosine, step 3 of 6 is near its middle."""
    chosen = ("training.lr_schedule=cosine", "training.warmup=0", "rewards=aesthetic", "optim.lr=1e-5", "tracker=null")
    folder = go("more", *chosen, "training.steps=2")
    run(resumed_config("train", [f"resume={folder}", "training.steps=6"]), folder)
    wanted = [formula("cosine", step, 0, steps) for step, steps in [(0, 2), (1, 2), (2, 6), (3, 6), (4, 6), (5, 6)]]
    assert rates_in(folder) == pytest.approx([1e-5 * share for share in wanted])


def test_the_supervised_loop_learns_in_the_first_step_of_its_warm_up_and_after_a_longer_resume(tmp_path):
    """Adam along one slope moves by the rate: a hundredth of it, then of the new length's schedule."""
    model = nn.Linear(1, 1, bias=False)
    start = model.weight.item()

    def more(steps: int, schedule: str, warmup: int) -> None:
        settings = FitSettings(steps, 0.5, schedule, warmup=warmup, weight_decay=0.0)
        fit("slope", model, lambda step: {"loss": model.weight.sum()}, settings, tmp_path)

    more(1, "linear", 100)
    assert start - model.weight.item() == pytest.approx(0.5 / 100, rel=1e-4)
    before = model.weight.item()
    more(2, "linear", 0)  # goes on: its second and last step of two has half the rate
    assert before - model.weight.item() == pytest.approx(0.25, rel=1e-3)
