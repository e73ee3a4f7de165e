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
from textcraftor.training.preference_towers import Towers
from textcraftor.training.preferences import read_preferences
from textcraftor.training.train_reward import check, run

TOWERS = ("layout=pickscore", "folds=2", "training.steps=12", "training.batch_size=12", "training.lr=1e-3")


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> list[str]:
    """Of 30 pairs, in which the darker picture was preferred."""
    folder = tmp_path_factory.mktemp("rated")
    return [*make_rated(folder, seeds=5), f"features={folder / 'features'}", "device=cpu"]


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
    assert summary["choices"] == 30
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


def test_towers_learn_in_pickscores_layout(configure, keys, tmp_path):
    """The folder loads as `rewards=pickscore` and as `rewards=mine`; its merged weights score as the adapted ones did,
    foresee the choices better than those that they began from, and carry gradients."""
    config = configure("train-reward", *keys, *TOWERS)
    said = run(config, tmp_path / "towers")
    assert "of choices" not in said
    assert not list((tmp_path / "towers").glob("*.checkpoint.pt"))
    mine = load(str(tmp_path / "towers"))
    published = configure("train", "rewards=pickscore", f"rewards.pickscore.reward.path={tmp_path / 'towers' / 'clip'}")
    preferences = read_preferences(config)
    images = torch.stack([load_picture(file) for _, file in preferences.pictures])
    prompts = [prompt for prompt, _ in preferences.pictures]
    scores = mine(images, prompts)
    assert torch.equal(scores, made(published.rewards.pickscore.reward)(images, prompts))
    adapted = Towers(str(WEIGHTS / "pickscore"), preferences.pictures, config, tmp_path / "again", "cpu")
    assert scores.numpy() == pytest.approx(adapted.learn(preferences.choices), abs=1e-3)
    losses = []
    for given in (PickScore.load(str(WEIGHTS / "pickscore"))(images, prompts), scores):
        margins = torch.from_numpy(preferences.choices.margins(given.numpy()))
        outcomes = torch.from_numpy(preferences.choices.outcomes).to(margins)
        losses.append(torch.nn.functional.binary_cross_entropy_with_logits(margins, outcomes).item())
    assert losses[1] < losses[0] - 0.05
    image = grey(0.6).requires_grad_()
    mine(image, [prompts[0]]).sum().backward()
    assert image.grad.abs().sum() > 0


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
