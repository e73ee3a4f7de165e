"""The memory plan: what it predicts against what is measured, under every kind of plan, with one gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.conftest import QUICK
from textcraftor.errors import UsageError
from textcraftor.models.placing import Part
from textcraftor.training.counting import LiveBytes
from textcraftor.training.interrupt import Interrupt
from textcraftor.training.loop import tune
from textcraftor.training.memory import plan_memory
from textcraftor.training.phases import GB, Phases, resident_bytes
from textcraftor.training.train import load

BATCH = 4
SETTINGS = (
    *QUICK,
    "sampling.steps=3",
    "gradient.k=3",
    f"training.batch_size={BATCH}",
    "memory.budget=64",
    "rewards=aesthetic",
)


@pytest.fixture
def job(configure):
    return load(configure("train", *SETTINGS))


def gradient(job, state) -> torch.Tensor:
    model = job.model
    state.learn(0)
    model.checkpoint_blocks(state.plan.blocks, not state.plan.decoder)
    job.objective.gradient(state, range(BATCH), BATCH, Phases(model.device))
    return torch.cat([p.grad.flatten() for p in state.parameters if p.grad is not None])


def test_every_plan_predicts_its_peak_within_15_percent_and_changes_no_gradient(job):
    """Peaks of live tensors, which exclude what the process holds anyway; a prediction of the whole is closer still."""
    state = job.state()
    assert (state.plan.kept_steps, state.plan.decoder, state.plan.micro_batch) == (3, True, BATCH)
    activations = job.objective.costs()
    plans = [
        state.plan,
        replace(state.plan, decoder=False),
        replace(state.plan, decoder=False, kept_steps=1),
        replace(state.plan, decoder=False, kept_steps=0),
        replace(state.plan, decoder=False, blocks=True),
        replace(state.plan, decoder=False, kept_steps=0, blocks=True),
        replace(state.plan, decoder=False, kept_steps=0, blocks=True, micro_batch=2),
    ]
    whole, peaks = gradient(job, state), []
    for plan in plans:
        state.plan = plan
        with LiveBytes() as live:
            torch.testing.assert_close(gradient(job, state), whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item())
        peaks.append(live.peak)
        predicted = activations.peak(plan.kept_steps, plan.blocks, plan.decoder, plan.micro_batch)
        if plan.micro_batch < BATCH:  # the first part's gradients of the weights, which a plan counts as always there
            predicted += 4 * sum(parameter.numel() for parameter in state.parameters)
        assert predicted == pytest.approx(live.peak, rel=0.15), plan
    assert peaks == sorted(peaks, reverse=True), "a plan that keeps less needs more"


def test_a_smaller_budget_keeps_less_and_says_so(job):
    costs, device = job.objective.costs(), job.model.device
    here = resident_bytes(device)
    plans = [plan_memory((here + extra) / GB, device, costs, BATCH, 0) for extra in (4e9, 1.5e8, 8e7)]
    assert plans[0].kept_steps == 3
    assert plans[0].decoder
    assert plans[2].kept_steps < plans[1].kept_steps or plans[2].micro_batch < plans[1].micro_batch
    for plan in plans:
        assert plan.predicted <= plan.budget
        assert f"predicted peak {plan.predicted / GB:.2f} GB of" in str(plan)


def test_running_out_of_memory_all_the_same_re_plans_once_and_accumulates(job, monkeypatch, capsys):
    """The decoder refuses more than two pictures once; the step is done again in halves, with the same gradient."""
    model, decode, state = job.model, job.model.decode, job.state()
    whole = gradient(job, state)

    def tight(latents):
        if len(latents) > BATCH // 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents)

    monkeypatch.setattr(model, "decode", tight)
    norms = []
    pace = replace(job.pace, steps=2, watch_every=99, checkpoint_every=99)
    tune(
        job.objective,
        state,
        pace,
        lambda step, line: norms.append(line["grad_norm"]),
        lambda _: [],
        lambda _: None,
        Interrupt(),
    )
    assert state.plan.micro_batch == BATCH // 2
    assert state.plan.replanned
    assert norms[0] == pytest.approx(whole.norm().item(), rel=1e-3)
    assert "out of memory: accumulating gradients of 2 at a time" in capsys.readouterr().err


class Flat:
    """Costs a gigabyte whatever is kept."""

    gradient_steps = 1
    choices = ((1, False, True),)

    def peak(self, kept: int, blocks: bool, decoder: bool, rows: int, together: bool = True) -> float:
        return GB


def test_what_finds_no_room_beside_the_device_comes_again_from_disk():
    """Encoders of 4, 2 and 1 GB, 8 GB in use: the largest leave first, while memory holds them."""
    sizes = {"text_encoder": 1 * GB, "text_encoder_2": 2 * GB, "text_encoder_3": 4 * GB}
    leaves = ("while_it_works", "on_disk")
    parts = [Part(name, size, leaves, largest=size, alone=True) for name, size in sizes.items()]
    for budget, host, away, disk in (
        (9, 10, [], []),
        (8, 10, ["text_encoder_3"], []),
        (6, 10, ["text_encoder_3", "text_encoder_2"], []),
        (6, 5, ["text_encoder_3", "text_encoder_2"], ["text_encoder_2"]),
        (6, 0, ["text_encoder_3", "text_encoder_2"], ["text_encoder_3", "text_encoder_2"]),
    ):
        plan = plan_memory(budget, torch.device("cpu"), Flat(), 1, 0, 8 * GB, parts, host * GB)
        assert {part for part, place in plan.places.items() if place != "resident"} == {*away}
        assert [part for part in away if plan.places[part] == "on_disk"] == disk
        assert str(plan).count("read from disk whenever it works") == len(disk)


def test_places_are_chosen_by_what_they_cost_and_refused_where_they_cannot_be():
    """Text encoders leave first, then scorers, then the denoiser comes layer by layer; a chosen place stays."""
    parts = [
        Part("text_encoder", 1 * GB, ("while_it_works", "on_disk", "sharded"), 1 * GB, 0, alone=True),
        Part("scorers", 2 * GB, ("while_it_works",), 1 * GB),
        Part("denoiser", 4 * GB, ("sharded", "layer_by_layer"), 1 * GB, 1 * GB),
    ]

    def away(budget: float, **chosen: str) -> dict[str, str]:
        plan = plan_memory(budget, torch.device("cpu"), Deep(), 1, 0, 8 * GB, parts, 10 * GB, chosen)
        assert plan.predicted <= plan.budget
        return {part: place for part, place in plan.places.items() if place != "resident"}

    assert away(9) == {}
    assert away(8) == {"text_encoder": "while_it_works"}
    assert away(7) == {"text_encoder": "while_it_works", "scorers": "while_it_works"}
    assert away(5) == {"text_encoder": "while_it_works", "scorers": "while_it_works", "denoiser": "layer_by_layer"}
    assert away(7, denoiser="layer_by_layer") == {"denoiser": "layer_by_layer"}
    for chosen, message in (
        ({"denoiser": "on_disk"}, "memory.places.denoiser=on_disk must be one of resident, sharded, layer_by_layer"),
        ({"denoiser": "sharded"}, "memory.places.denoiser=sharded shares weights between processes, and here is one"),
        ({"unet": "sharded"}, "memory.places.unet=sharded: what may be placed here is text_encoder, scorers, denoiser"),
    ):
        with pytest.raises(UsageError, match=message):
            away(9, **chosen)


class Deep(Flat):
    """May be computed again block by block."""

    choices = ((1, True, False),)


def test_layers_that_come_and_go_and_scorers_one_by_one_change_no_gradient(job):
    """From disk here, where there is no device; between passes no layer of a block has its weights."""
    state = job.state()
    state.plan = replace(state.plan, blocks=True, decoder=False)
    whole = gradient(job, state)
    layer_by_layer = {"denoiser": "layer_by_layer", "vae": "layer_by_layer", "scorers": "while_it_works"}
    job.place(replace(state.plan, places=state.plan.places | layer_by_layer))
    assert job.rewards.one_by_one
    torch.testing.assert_close(gradient(job, state), whole, rtol=1e-4, atol=1e-5 * whole.abs().max().item())
    assert sum(weight.is_meta for weight in job.model.denoiser.parameters()) > 100
