"""Seeds of 64 bits: small ones draw what torch draws, all of them draw something different, others are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed

from textcraftor.config.fields import MOST_SEED
from textcraftor.data.prompts import PromptDraw
from textcraftor.errors import UsageError
from textcraftor.evaluation.evaluate import Evaluation
from textcraftor.evaluation.run import run as evaluate
from textcraftor.evaluation.suite import read_rows_of
from textcraftor.inference.run import run as generate
from textcraftor.models.seeds import global_seed, run_rng, unit_noise
from textcraftor.training.train import load

LARGE = [2**32, 2**32 + 1, 2**33, 2**40, 2**48 + 2**32, 2**63 - 1, 2**63, MOST_SEED]
SMALL = [0, 1, 2**31, 2**32 - 1]


def test_small_seeds_draw_torchs_noise_and_large_ones_noise_of_their_own():
    """2^32 was 0, 2^33 too, and 2^64 - 1 was 2^32 - 1."""
    noises = [unit_noise((4, 32, 32), seed) for seed in SMALL + LARGE]
    for seed, noise in zip(SMALL, noises, strict=False):
        assert torch.equal(noise, torch.randn((4, 32, 32), generator=torch.Generator().manual_seed(seed)))
    flat = torch.stack(noises).flatten(1)
    alike = torch.corrcoef(flat) - torch.eye(len(flat))
    assert alike.abs().max() < 0.08, "independent: 4,096 numbers each, five standard deviations"
    assert flat.mean(1).abs().max() < 0.08
    assert (flat.std(1) - 1).abs().max() < 0.06
    assert flat.dtype == torch.float32


@pytest.mark.parametrize("seed", [-1, 2**64, 2**70])
def test_other_seeds_are_refused_by_name(model, seed):
    with pytest.raises(UsageError, match=rf"seed={seed} must be a whole number from 0 on, at most {2**64 - 1}"):
        model.noise([0, seed], 64, 64)


def test_pictures_of_large_seeds_differ_and_are_evaluated_under_their_own_names(configure, tmp_path):
    """2^64 - 1 fits no signed number of 64 bits, and beside 0 numpy would make a rounded one of it."""
    small = ("sampling.steps=1", "device=cpu", f"seeds=[0,{2**32},{MOST_SEED}]")
    folder = tmp_path / "pictures"
    generate(configure("generate", *small, "prompt=a red circle", f"run_dir={folder}"), folder)
    pictures = [(folder / f"0000_{seed}.png").read_bytes() for seed in (0, 2**32, MOST_SEED)]
    assert len(set(pictures)) == 3
    folder = tmp_path / "evaluation"
    evaluate(configure("evaluate", *small, "suite=toybox", "limit=1", "rewards=clip", f"run_dir={folder}"), folder)
    rows = read_rows_of(folder)
    assert [row["seed"] for row in rows] == [0, 2**32, MOST_SEED] * 2, "one prompt of each of two categories"
    assert len({row["clip"] for row in rows}) == 6
    assert json.loads((folder / "summary.json").read_text())["seeds"] == [0, 2**32, MOST_SEED]


def test_figures_of_large_seeds_are_read_back(tmp_path):
    seeds = (0, 2**53 + 1, MOST_SEED)
    stored = Evaluation(("a",), seeds, torch.zeros(1, 3, 3, 4, 4, dtype=torch.uint8), {"total": np.zeros((1, 3))})
    stored.save(tmp_path / "before.npz")
    assert Evaluation.load(tmp_path / "before.npz").seeds == seeds


def test_runs_of_large_seeds_draw_what_is_their_own(configure):
    """Of prompts and their noise, and of new LoRA weights."""
    draws = [PromptDraw(list("abcdefgh"), seed)(0, 8) for seed in (0, 2**32, 2**63, MOST_SEED)]
    assert len({str(prompts) for prompts, _ in draws}) == len({str(seeds) for _, seeds in draws}) == 4
    weights = []
    for seed in (0, 2**32, MOST_SEED):
        learners = load(configure("train", "tune=text_encoder_lora", "device=cpu", f"seed={seed}")).learners
        weights.append(torch.cat([parameter.flatten() for parameter in learners[0].parameters]))
    assert all(not torch.equal(weights[one], weights[other]) for one, other in [(0, 1), (0, 2), (1, 2)])


def test_no_place_of_a_run_draws_what_another_run_draws():
    """numpy forgets zeros at the end: what 2^32 drew at its first place, 0 drew at its second."""
    runs = [0, 1, 2, 2**32, 2**32 + 1, 2**33, 3 * 2**32, MOST_SEED]
    for place in ((), (0,), (1,)):
        drawn = {int(run_rng(seed, at, *place).integers(2**62)) for seed in runs for at in range(4)}
        assert len(drawn) == 4 * len(runs)
    small, large = (PromptDraw(list("abcdefgh"), seed) for seed in (0, 2**32))
    assert small(1, 8)[0] != large(0, 8)[0]
    assert run_rng(7, 3, 0).integers(2**62) == np.random.default_rng((7, 3, 0)).integers(2**62), "small ones as ever"


def test_the_global_generators_take_what_a_large_seed_becomes():
    """numpy's takes 32 bits and refuses more."""
    assert [global_seed(seed) for seed in SMALL] == SMALL, "small ones are themselves"
    assert len({global_seed(seed) for seed in LARGE} | set(SMALL)) == len(SMALL + LARGE)
    state = torch.get_rng_state()
    for seed in LARGE:
        set_seed(global_seed(seed))
    torch.set_rng_state(state)
