"""Adapters as hooks against peft's own, in every family and for several pairs at once; and their sums."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from peft import LoraConfig
from peft.utils import set_peft_model_state_dict
from random_models import make_pipeline

from textcraftor.enhancement.adapters import PairAdapters, combined, layers_of, rank_of
from textcraftor.errors import UsageError
from textcraftor.models.base import Branch
from textcraftor.models.model import Model

FAMILIES = ["sd15", "sdxl", "sd35_medium", "flux1_dev", "flux2_klein"]
TEXTS = ["a red circle", "a blue star", "a pink cross", "a green ring"]


def randomised(adapters: PairAdapters) -> PairAdapters:
    generator = torch.Generator().manual_seed(0)
    for weight in (*adapters.down, *adapters.up):
        weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    return adapters.requires_grad_(False)


def update(state, layer: str) -> torch.Tensor:
    return state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pairs_rows_are_computed_with_its_own_adapters(family):
    """Two pairs of two rows in one batch, against peft's adapters in the same layers, one pair after the other."""
    model = Model(make_pipeline(family, tiny=True))
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=list(model.family.lora_targets["denoiser"]))
    adapters = randomised(PairAdapters.new(model.denoiser, lora, pairs=2))
    latents, t = model.noise([1, 2, 3, 4], 32, 32), torch.tensor(500)
    with torch.no_grad():
        branch = model.encode(TEXTS, None, size=(32, 32)).prompt
        plain = model.predict(latents, t, branch)
        with adapters.attached():
            together = model.predict(latents, t, branch)
        torch.testing.assert_close(model.predict(latents, t, branch), plain, rtol=0, atol=0)
        model.denoiser.add_adapter(lora)
        for pair in range(2):
            rows = slice(2 * pair, 2 * pair + 2)
            state = adapters.state(pair)
            state = {name: one / (adapters.scale if ".lora_B." in name else 1) for name, one in state.items()}
            set_peft_model_state_dict(model.denoiser, state)
            alone = model.predict(
                latents[rows], t, Branch(*({k: v[rows] for k, v in part.items()} for part in vars(branch).values()))
            )
            torch.testing.assert_close(together[rows], alone, rtol=0, atol=2e-5)
    assert (together - plain).abs().max() > 1e-2, "the adapters change nothing: the test proves nothing"


def test_state_and_back_is_the_same_adapter():
    model = Model(make_pipeline("sd15", tiny=True))
    lora = LoraConfig(r=2, lora_alpha=6, target_modules=list(model.family.lora_targets["text_encoder"]))
    encoder = model.encoders()["text_encoder"]
    first = randomised(PairAdapters.new(encoder, lora))
    again = PairAdapters.of(encoder, first.state())
    with torch.no_grad(), first.attached():
        wanted = model.encode(TEXTS, None).prompt.mixed["encoder_hidden_states"]
    with torch.no_grad(), again.attached():
        ours = model.encode(TEXTS, None).prompt.mixed["encoder_hidden_states"]
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [None, 12, 4, 1], ids=str)
def test_a_combination_is_the_nearest_update_of_its_rank_to_the_weighted_sum(rank):
    """By the singular values that are left over (Eckart and Young); averaging the factors is something else."""
    network = torch.nn.ModuleDict(
        {"to_q": torch.nn.Linear(9, 7), "deep": torch.nn.ModuleDict({"to_v": torch.nn.Linear(6, 8)})}
    )
    adapters = randomised(PairAdapters.new(network, LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]), 3))
    states, weights = [adapters.state(pair) for pair in range(3)], [0.2, 0.3, 0.5]
    state = combined(states, weights, rank)
    assert layers_of(state) == ["to_q", "deep.to_v"]
    for layer in layers_of(state):
        total = reduce(torch.add, (weight * update(one, layer) for weight, one in zip(weights, states, strict=True)))
        left = torch.linalg.svdvals(total)[6 if rank is None else rank :].norm()
        torch.testing.assert_close((update(state, layer) - total).norm(), left, rtol=1e-3, atol=1e-5)
    if rank is None:
        assert rank_of(state) == 6
        means = {name: sum(w * one[name] for w, one in zip(weights, states, strict=True)) for name in states[0]}
        assert (update(means, "to_q") - update(state, "to_q")).norm() > 0.01


def test_many_adapters_are_combined_a_few_at_a_time():
    network = torch.nn.ModuleDict({"to_q": torch.nn.Linear(9, 7)})
    adapters = randomised(PairAdapters.new(network, LoraConfig(r=1, lora_alpha=1, target_modules=["to_q"]), 40))
    states = [adapters.state(pair) for pair in range(40)]
    mean = sum(update(one, "to_q") for one in states) / 40
    torch.testing.assert_close(update(combined(states, [1 / 40] * 40, 7), "to_q"), mean, rtol=0, atol=1e-5)


def test_targets_that_are_no_linear_layers_are_refused():
    network = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(3, 3, 1)})
    with pytest.raises(UsageError, match="conv, and pairs of pictures adapt linear layers alone"):
        PairAdapters.new(network, LoraConfig(target_modules=["conv"]))
    with pytest.raises(UsageError, match="no layer matches target_modules"):
        PairAdapters.new(network, LoraConfig(target_modules=["to_q"]))
