"""`textcraftor train-reward`: what it writes are published layouts that score alike, carry gradients, and train."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import WEIGHTS
from tests.training.rated_pictures import make_rated
from textcraftor.config.making import made
from textcraftor.errors import UsageError
from textcraftor.evaluation.score import load_picture
from textcraftor.rewards.clip import PickScore
from textcraftor.rewards.learned import load
from textcraftor.training import preference_head
from textcraftor.training.preference_fit import log_likelihood
from textcraftor.training.preference_towers import Towers
from textcraftor.training.preferences import read_preferences
from textcraftor.training.train_reward import check, run

TOWERS = ("layout=pickscore", "folds=2", "training.batch_size=8", "training.lr=3e-3", "training.warmup=2")


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> list[str]:
    """Of 24 pairs, in which the darker picture was preferred."""
    folder = tmp_path_factory.mktemp("rated")
    return [*make_rated(folder), f"features={folder / 'features'}", "device=cpu"]


@pytest.fixture(scope="module")
def learned(configure, keys, tmp_path_factory) -> tuple[Path, str]:
    """A head, and what was said of it."""
    folder = tmp_path_factory.mktemp("learned") / "head"
    return folder, run(configure("train-reward", *keys, "draws=0"), folder)


def grey(level: float) -> torch.Tensor:
    return torch.full((1, 3, 64, 64), level)


def test_a_head_knows_the_taste_and_loads_as_the_published_layout(configure, keys, learned):
    """`rewards=mine`, and `rewards=aesthetic` with this head, give one score: that of the features; its mean over the
    rated pictures is 0 and its standard deviation 1."""
    folder, said = learned
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["choices"] == 24
    assert summary["beats_chance"]
    assert summary["accuracy"]["mean"] > 0.7
    assert said.endswith(f"textcraftor train rewards=mine rewards.mine.path={folder}")
    assert "WARNING" not in said
    files = [file for _, file in read_preferences(configure("train-reward", *keys)).pictures]
    images = torch.stack([load_picture(file) for file in files])
    config = configure("train", "rewards=mine", f"rewards.mine.path={folder}")
    mine = made(config.rewards.mine.reward)(images, ["a red circle"] * len(images))
    layout = configure("train", "rewards=aesthetic", f"rewards.aesthetic.reward.head={folder / 'head.safetensors'}")
    published = made(layout.rewards.aesthetic.reward)(images, ["a red circle"] * len(images))
    assert torch.equal(mine, published)
    assert mine.mean().item() == pytest.approx(0, abs=1e-4)
    assert mine.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert np.corrcoef(mine, images.mean((1, 2, 3)))[0, 1] < -0.7


def test_the_gradient_in_the_pixels_is_that_of_the_score(learned):
    """Along a random direction, by finite differences; the dark picture has the higher score."""
    torch.manual_seed(0)
    mine, image, step = load(str(learned[0])), grey(0.5).requires_grad_(), 0.01 * torch.rand(1, 3, 64, 64)
    (mine(image, ["a red circle"])).sum().backward()
    ahead, behind = (mine(grey(0.5) + sign * step, ["a red circle"]).item() for sign in (1, -1))
    assert (image.grad * step).sum().item() == pytest.approx((ahead - behind) / 2, rel=0.1, abs=1e-3)
    assert mine(grey(0.1), ["a red circle"]) > mine(grey(0.9), ["a red circle"])


def test_pictures_are_embedded_once(configure, keys, learned, tmp_path, monkeypatch):
    """A later training on the same pictures, with other folds, finds the embeddings."""
    monkeypatch.setattr(preference_head, "embedded", None)
    run(configure("train-reward", *keys, "draws=0", "seed=1"), tmp_path / "again")
    assert (tmp_path / "again" / "head.safetensors").exists()


def test_chance_is_warned_of_and_the_curve_is_told(configure, tmp_path):
    """People who guess, on more pairs than the first point of the curve takes."""
    guess = np.random.default_rng(5)
    keys = make_rated(tmp_path, lambda *_: str(guess.choice(["left", "right", "tie"])), raters=("ann", "ben"))
    said = run(configure("train-reward", *keys, f"features={tmp_path}", "draws=1", "device=cpu"), tmp_path / "guessed")
    summary = json.loads((tmp_path / "guessed" / "summary.json").read_text())
    assert not summary["beats_chance"]
    assert [point["choices"] for point in summary["curve"]] == [25]
    assert summary["ties"] > 0
    assert "\nfrom 25 choices: 0." in said
    assert "WARNING: this is no better than chance" in said
    with pytest.raises(UsageError, match="already holds a reward"):
        check(configure("train-reward", *keys), tmp_path / "guessed")


def test_towers_are_written_in_pickscores_layout(configure, keys, tmp_path):
    """The folder loads as `rewards=pickscore` and as `rewards=mine`, with one score, which carries gradients."""
    folder = tmp_path / "towers"
    said = run(configure("train-reward", *keys, *TOWERS, "training.steps=1"), folder)
    assert "\nfrom" not in said  # no curve: its every point is a training
    assert not list(folder.glob("*.checkpoint.pt"))
    published = configure("train", "rewards=pickscore", f"rewards.pickscore.reward.path={folder / 'clip'}")
    image, mine = grey(0.6).requires_grad_(), load(str(folder))
    score = mine(image, ["a red circle"])
    assert torch.equal(score, made(published.rewards.pickscore.reward)(image, ["a red circle"]))
    score.sum().backward()
    assert image.grad.abs().sum() > 0


def test_towers_learn_what_people_choose(configure, keys, tmp_path):
    """Better than those that they began from; merged weights, saved, score as the adapters do, and a training that was
    done is not done again."""
    config = configure("train-reward", *keys, *TOWERS, "training.steps=12")
    preferences = read_preferences(config)
    towers = Towers(str(WEIGHTS / "pickscore"), preferences.pictures, config, tmp_path, "cpu")
    scores = towers.learn(preferences.choices)
    towers.save(preferences.choices, tmp_path)
    images = torch.stack([load_picture(file) for _, file in preferences.pictures])
    before, after = (
        PickScore.load(str(place))(images, [prompt for prompt, _ in preferences.pictures]).numpy()
        for place in (WEIGHTS / "pickscore", tmp_path / "clip")
    )
    assert after == pytest.approx(scores, abs=1e-3)
    choices = preferences.choices
    gained = log_likelihood(choices.margins(after), choices.outcomes) - log_likelihood(
        choices.margins(before), choices.outcomes
    )
    assert gained.mean() > 0.05


def test_a_learned_reward_trains(go, learned):
    folder = go("mine", "rewards=mine", f"rewards.mine.path={learned[0]}", "training.steps=1", "tracker=null")
    (line,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(line["reward/mine"])


def test_other_folders_are_no_rewards(configure, learned, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "reward.json").write_text('{"format": 2, "layout": "aesthetic", "clip": "x"}')
    for path, words in (
        (None, "rewards.mine.path is needed: give the folder that textcraftor train-reward wrote"),
        (str(tmp_path), "holds no reward.json"),
        (str(tmp_path / "old"), "another TextCraftor wrote it"),
    ):
        with pytest.raises(UsageError, match=words):
            load(path)
    with pytest.raises(UsageError, match=r"rewards.clip.path=x must be left out: give the path of what scores"):
        configure("train", "+rewards.clip.path=x")
