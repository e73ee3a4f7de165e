"""The method: only the encoder learns, one seed gives one result, and the run folder holds what it should."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from tests.conftest import PROMPTS, QUICK
from textcraftor.cli import config_dir
from textcraftor.data.prompts import PromptDraw
from textcraftor.errors import UsageError
from textcraftor.models.loading import load_model
from textcraftor.models.tuning import PREFIX
from textcraftor.rewards.mix import RewardMix, load_mix
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.sampling.gradients import last_k
from textcraftor.training import reward_tuning
from textcraftor.training.run import check, run, split_prompts

KEPT = {
    "config.yaml",
    "summary.json",
    "metrics.jsonl",
    "report.html",
    "before_after.png",
    "conditioning.json",
    "samples",
    "text_encoder",
    "last",
    "tensorboard",
}


@pytest.fixture
def go(configure, tmp_path):
    """Run `train` with small settings; returns its folder."""

    def start(name: str, *overrides: str):
        folder = tmp_path / name
        folder.mkdir()
        run(configure("train", *QUICK, f"run_dir={folder}", *overrides), folder)
        return folder

    return start


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "last" / "text_encoder" / "model.safetensors")


def test_a_run_writes_its_folder_and_two_runs_with_one_seed_agree_exactly(go):
    first, second, other = go("a"), go("b"), go("c", "seed=5")
    assert {path.name for path in first.iterdir()} == KEPT
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (first, second, other)]
    assert summaries[0]["after"] == summaries[1]["after"]
    assert summaries[0]["before"] == summaries[2]["before"], "the evaluation depends on the training's seed"
    for key, value in weights(first).items():
        assert torch.equal(value, weights(second)[key]), key
    assert any(not torch.equal(value, weights(other)[key]) for key, value in weights(first).items())
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"loss", "grad_norm", "reward/aesthetic", "reward/hpsv2", "reward/clip"} <= set(lines[0])
    assert {"before", "after", "difference", "seconds", "peak_memory_gb"} <= set(summaries[0])
    html = (first / "report.html").read_text()
    assert html.count("data:image/png;base64") >= 12
    assert "http" not in html.replace("http://www.w3.org", ""), "the report must be self-contained"
    with Image.open(first / "before_after.png") as sheet:
        assert sheet.size[0] > 256


SHORT = ("training.steps=1", "evaluation.prompts=2", "evaluation.watch=1", "evaluation.seeds=[0]", "sampling.steps=2")


@pytest.mark.parametrize("preset", sorted(file.stem for file in (config_dir() / "rewards").glob("*.yaml")))
def test_every_mix_trains(go, preset):
    folder = go(
        preset, *SHORT, f"rewards={preset}", f"normalize_rewards={'true' if preset == 'preference' else 'false'}"
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert all(math.isfinite(value) for value in summary["after"].values())
    if preset == "preference":  # standardised by the untuned model's pictures
        assert summary["before"]["total"] == pytest.approx(0, abs=1e-5)


def test_only_the_tuned_encoder_changes_and_nothing_frozen_has_a_gradient(configure, monkeypatch, tmp_path):
    config = configure("train", *QUICK, f"run_dir={tmp_path}")
    models = []

    def remember(config):
        models.append(load_model(config))
        return models[-1]

    monkeypatch.setattr("textcraftor.training.run.load_model", remember)
    run(config, tmp_path)
    tuned, fresh = models[0], load_model(config)
    for name in ("unet", "vae"):
        part, before = getattr(tuned, name), getattr(fresh, name).state_dict()
        assert all(parameter.grad is None for parameter in part.parameters()), name
        assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items()), name
    original = fresh.text_encoders["original"].state_dict()
    kept = tuned.text_encoders["original"]
    assert all(parameter.grad is None for parameter in kept.parameters())
    assert all(torch.equal(value, original[key]) for key, value in kept.state_dict().items())
    changed = {key.removeprefix(PREFIX): value for key, value in weights(tmp_path).items()}
    assert any(not torch.equal(value, original[key.removeprefix(PREFIX)]) for key, value in changed.items())


def test_evaluation_during_training_does_not_touch_training(go):
    """Looking at held-out prompts after every step or only at the end leads to the same weights."""
    often, once = go("often", "training.watch_every=1"), go("once", "training.watch_every=100")
    for key, value in weights(often).items():
        assert torch.equal(value, weights(once)[key]), key


def test_tuning_on_one_batch_raises_its_reward(model, sampling, configure):
    """The sign and the path of the gradient: ascending on fixed prompts and noise must raise the score."""
    mix = load_mix(configure("train", "rewards=aesthetic").rewards)
    scores = []
    reward_tuning.tune_by_reward(
        model,
        mix,
        partial(last_k, k=2),
        ConditioningSchedule.tuned_on("all", 0, model.timesteps(sampling.steps)),
        sampling,
        lambda step, batch_size: (PROMPTS[:2], [1, 2]),
        partial(torch.optim.AdamW, lr=3e-5),
        reward_tuning.RewardTuning(steps=8, batch_size=2),
        Accelerator(cpu=True),
        lambda step, figures: scores.append(figures["reward/aesthetic"]),
        lambda step: None,
    )
    assert np.mean(scores[-2:]) > scores[0]


def test_a_reward_that_is_not_a_number_stops_the_run_and_names_it(go, monkeypatch):
    class Broken(torch.nn.Module):
        def forward(self, images, prompts):
            return images.mean((1, 2, 3)) * math.nan

    mix = RewardMix({"broken": Broken()}, {"broken": 1.0})
    monkeypatch.setattr("textcraftor.training.run.load_mix", lambda config, normalize: mix)
    with pytest.raises(FloatingPointError, match=r"step 0: loss is nan; prompts \["):
        go("nan")


def test_the_draw_of_prompts_is_a_function_of_seed_and_step():
    draw = PromptDraw(list("abcde"), seed=3)
    assert draw(4, 2) == PromptDraw(list("abcde"), seed=3)(4, 2)
    assert draw(4, 2)[1] != draw(5, 2)[1]
    one_pass = [prompt for step in range(5) for prompt in draw(step, 1)[0]]
    assert sorted(one_pass) == list("abcde"), "a pass shows every prompt once"


def test_training_and_held_out_prompts_never_overlap(configure, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"prompt {i % 20}" for i in range(60)))
    config = configure("train", f"prompts.path={file}", "prompts.held_out=null", "evaluation.prompts=6")
    train, held_out, watched = split_prompts(config)
    everything = [*train, *held_out, *watched]
    assert len(everything) == len(set(everything)) == 20
    assert held_out
    assert watched


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gradient.k=16", r"gradient.k=16 .* sampling.steps=15"),
        ("training.steps=0", "training.steps=0 must be at least 1"),
        ("conditioning={tuned_on: last_n, n: 20}", "conditioning.n=20"),
        ("prompts.path=/nowhere.txt", "does not exist"),
        ("rewards.hpsv2.reward.checkpoint=/nowhere.pt", r"rewards.hpsv2.reward.checkpoint=/nowhere.pt does not exist"),
        ("+rewards.mine.weight=1", "rewards.mine needs both"),
        ("scorer_dtype=int8", "scorer_dtype=int8 must be one of"),
        (
            "rewards={aesthetic: {weight: 0}, hpsv2: {weight: 0}, clip: {weight: 0}, pickscore: {weight: 0}}",
            "every weight is 0",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_any_model_loads(configure, tmp_path, override, message):
    with pytest.raises(UsageError, match=message):
        check(configure("train", override), tmp_path)


def test_the_training_function_fits_on_a_page():
    """A reader finds the method in one function of at most 70 lines, in a file of at most 200."""
    import inspect

    lines = inspect.getsource(reward_tuning.tune_by_reward).splitlines()
    assert len(lines) <= 70
    assert len(inspect.getsource(reward_tuning).splitlines()) <= 200
