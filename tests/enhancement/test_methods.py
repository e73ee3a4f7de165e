"""What adapters learn from pairs: each pair alone or with others, against the loss written out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from random_models import make_pipeline
from torch import nn

from textcraftor.enhancement.adapters import State, layers_of
from textcraftor.enhancement.methods import Pairs, attached, chunks, differential, dpo, dpo_loss
from textcraftor.models.model import Model
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.training.densities import Densities
from textcraftor.training.fitting import FitSettings

PROMPTS = ["a red circle", "a blue star", "a pink cross"]


@pytest.fixture(params=[("sd15", "denoiser"), ("sd15", "text_encoder"), ("flux1_dev", "denoiser")], ids=str)
def pairs(request, tmp_path) -> Pairs:
    """Three pairs of random latents on a small model."""
    family, part = request.param
    model = Model(make_pipeline(family, tiny=True))
    network = model.denoiser if part == "denoiser" else model.encoders()[part]
    for module in (model.denoiser, *model.encoders().values()):
        module.requires_grad_(False)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=list(model.family.lora_targets[part]))
    before, after = model.noise([1, 2, 3], 32, 32), model.noise([4, 5, 6], 32, 32)
    settings = FitSettings(3, 1e-2, schedule="constant", warmup=0, max_grad_norm=math.inf)
    original = ConditioningSchedule.original()
    return Pairs(
        model, {part: (network, lora)}, original, PROMPTS, before, after, (32, 32), Densities(), 3, settings, tmp_path
    )


def close(ours: dict[str, State], theirs: dict[str, State]) -> None:
    for part, state in ours.items():
        for layer in layers_of(state):
            updates = [one[f"{layer}.lora_B.weight"] @ one[f"{layer}.lora_A.weight"] for one in (state, theirs[part])]
            torch.testing.assert_close(*updates, rtol=0, atol=2e-4)


def moved(learned: dict[str, State]) -> float:
    return max(
        float(one.abs().max()) for state in learned.values() for name, one in state.items() if ".lora_B." in name
    )


def test_pairs_learn_together_what_each_learns_alone(pairs, tmp_path):
    together = differential(pairs)
    alone = differential(replace(pairs, batch_size=1, folder=tmp_path / "alone"))
    close(together, alone)
    assert moved(together) > 1e-3, "nothing is learned: the test proves nothing"


@pytest.mark.parametrize("pairs", [("sd15", "text_encoder")], indirect=True)
def test_the_second_adapter_of_a_pair_learns_the_difference_alone(pairs, tmp_path):
    """Where both pictures are one, the first adapter has learned it, and the second one has less to learn."""
    settings = replace(pairs.settings, steps=12)
    same = replace(pairs, settings=settings, after=pairs.before, folder=tmp_path / "same")
    other = replace(pairs, settings=settings, folder=tmp_path / "other")
    sizes = [
        sum(
            float((state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"]).norm())
            for layer in layers_of(state)
        )
        for state in (one for case in (same, other) for one in differential(case).values())
    ]
    assert sizes[0] < sizes[1]


def test_a_step_of_pairs_holds_no_prompt_twice(pairs):
    repeated = replace(pairs, prompts=["a", "a", "b"], batch_size=2)
    assert chunks(repeated) == [[0, 2], [1]]
    assert chunks(replace(pairs, batch_size=2)) == [[0, 1], [2]]


def test_all_pairs_are_drawn_before_one_comes_again(pairs):
    drawn = [index for step in range(3) for index in replace(pairs, batch_size=2).drawn(step)]
    assert sorted(drawn[:3]) == sorted(drawn[3:]) == [0, 1, 2]


def test_dpo_is_its_loss_written_out(pairs):
    """Log 2 while the adapters change nothing; then by both pictures' losses with and without them."""
    adapters, rows = pairs.adapters(), [0, 1, 2]
    with torch.no_grad(), attached(adapters):
        torch.testing.assert_close(dpo_loss(pairs, adapters, rows, 5), torch.tensor(math.log(2)), rtol=0, atol=1e-4)
    for one in adapters.values():
        for weight in one.parameters():
            nn.init.normal_(weight, std=0.3)
    with torch.no_grad():
        usual = [pairs.losses(latents, rows, 5) for latents in (pairs.before, pairs.after)]
        with attached(adapters):
            ours = [pairs.losses(latents, rows, 5) for latents in (pairs.before, pairs.after)]
            loss = dpo_loss(replace(pairs, beta=3.0), adapters, rows, 5)
    rises = [one - other for one, other in zip(ours, usual, strict=True)]
    wanted = torch.log1p(torch.exp(1.5 * (rises[1] - rises[0]))).mean()
    torch.testing.assert_close(loss, wanted)
    assert abs(float(loss) - math.log(2)) > 1e-3, "the adapters change nothing: the test proves nothing"
    assert moved(dpo(pairs)) > 1e-3


def test_an_interrupted_training_ends_as_an_undisturbed_one(pairs, tmp_path, monkeypatch):
    """Killed between two fits of one pair: what was fitted is read back."""
    whole = differential(pairs)
    folder = tmp_path / "again"
    folder.mkdir()
    (pairs.folder / "first_0.checkpoint.pt").rename(folder / "first_0.checkpoint.pt")
    close(differential(replace(pairs, folder=folder)), whole)
    for state, other in zip(differential(replace(pairs, folder=folder)).values(), whole.values(), strict=True):
        assert all(torch.equal(one, other[name]) for name, one in state.items())
