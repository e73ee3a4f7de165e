"""What is not finite teaches nothing: the run stops, names the step and the cause, and keeps what a replay needs."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.conftest import QUICK
from textcraftor.data.prompts import PromptDraw
from textcraftor.errors import UsageError
from textcraftor.rewards.total import RewardSum
from textcraftor.training.train import run


class Breaking(torch.nn.Module):
    """The pictures' brightness; broken from a step on, in its value or in its gradient alone."""

    def __init__(self, calls: int, how: str) -> None:
        super().__init__()
        self.left, self.how = calls, how

    def forward(self, images, prompts):
        brightness = images.mean((1, 2, 3))
        if not torch.is_grad_enabled():
            return brightness
        self.left -= 1
        if self.left >= 0:
            return brightness
        if self.how == "score":
            return brightness * math.nan
        brightness.register_hook(lambda gradient: gradient * math.inf)
        return brightness


@pytest.fixture
def broken(monkeypatch, configure, tmp_path):
    def start(how: str, *overrides: str):
        rewards = RewardSum({"broken": Breaking(2, how)}, {"broken": 1.0})
        # Planning measures one gradient; the first step's is the second, so the third belongs to step 1.
        monkeypatch.setattr("textcraftor.training.job.load_rewards", lambda config, normalize: rewards)
        folder = tmp_path / how
        overrides = (*QUICK, "training.steps=3", "training.checkpoint_every=1", f"run_dir={folder}", *overrides)
        return configure("train", *overrides), folder

    return start


@pytest.mark.parametrize(
    ("how", "cause"),
    [("score", "reward/broken is not finite"), ("gradient", "the gradient of text_encoder.[a-z_.]+ is not finite")],
)
def test_a_run_that_breaks_stops_and_names_the_cause(broken, how, cause):
    config, folder = broken(how)
    with pytest.raises(UsageError, match=f"step 1: {cause}; prompts and seeds are in .*not_finite.json"):
        run(config, folder)
    record = json.loads((folder / "not_finite.json").read_text())
    prompts, seeds = PromptDraw(record["prompts"], 0), record["seeds"]
    assert record["step"] == 1
    assert len(record["prompts"]) == len(seeds) == 2
    assert prompts is not None
    learned = torch.load(folder / "checkpoints" / "step_000001" / "state.pt", weights_only=True)["learned"]
    assert all(value.isfinite().all() for value in learned.values())


@pytest.mark.parametrize("how", ["score", "gradient"])
def test_broken_updates_can_be_skipped_and_counted(broken, how):
    """Two skips are allowed: the weights stay those of the last whole step, to the bit, and the summary counts."""
    config, folder = broken(how, "training.skip_broken=2", "training.keep_checkpoints=9")
    run(config, folder)
    assert json.loads((folder / "summary.json").read_text())["skipped_updates"] == 2
    states = [
        torch.load(folder / "checkpoints" / f"step_{step:06d}" / "state.pt", weights_only=True)["learned"]
        for step in (1, 3)
    ]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
