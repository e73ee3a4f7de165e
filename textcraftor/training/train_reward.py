"""`textcraftor train-reward`: a reward from what people prefer, in the layout of a published scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf

from textcraftor.assets import is_address, looks_local
from textcraftor.errors import UsageError
from textcraftor.evaluation.statistics import interval_text
from textcraftor.files.writing import check_unfinished, finish, locked, write_json, write_text
from textcraftor.models.loading import device_of
from textcraftor.rewards.learned import AESTHETIC, FORMAT, RECORD
from textcraftor.training.preference_fit import (
    TIE,
    Choices,
    accuracy,
    beats_chance,
    cross_validated,
    learning_curve,
)
from textcraftor.training.preference_head import Head, features_of
from textcraftor.training.preference_towers import Towers
from textcraftor.training.preferences import Preferences, read_preferences

DRAWS = 5  # for a point of a head's learning curve, which takes seconds


class Learner(Protocol):
    """What both layouts do with choices."""

    def learn(self, choices: Choices) -> Float[np.ndarray, " pictures"]:
        """The scores of every picture."""
        ...

    def save(self, choices: Choices, folder: Path) -> None:
        """Write the scorer that these choices teach."""
        ...


def check(config: DictConfig, folder: Path) -> Preferences:
    """What was chosen; what cannot work is refused before any model is loaded."""
    check_unfinished(folder, "a reward")
    clip = clip_of(config)
    if looks_local(clip) and not is_address(clip) and not Path(clip).exists():
        raise UsageError(f"clip={clip} does not exist")
    device_of(config.device)
    return read_preferences(config)


def clip_of(config: DictConfig) -> str:
    """The CLIP to begin from: the configuration's, else that of the model's scorer in this layout; a local one by its
    whole path."""
    scorers = config.model.scorers
    usual = scorers.aesthetic.clip if config.layout == AESTHETIC else scorers.pickscore.path
    clip = Path(config.clip or usual).expanduser()
    return str(clip.resolve()) if clip.exists() else str(config.clip or usual)


def run(config: DictConfig, folder: Path) -> str:
    """Write a reward that `rewards=mine rewards.mine.path=` takes, and how well it foresees what people choose on
    prompts that it did not learn from."""
    preferences = check(config, folder)
    with locked(folder):
        learner = learner_of(config, preferences, folder)
        summary = measured(config, learner, preferences.choices)
        learner.save(preferences.choices, folder)
        record = {"format": FORMAT, "layout": config.layout, "clip": clip_of(config)}
        write_json(folder / "summary.json", summary)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        write_json(folder / RECORD, record)
        finish(folder, "train-reward")
        for file in folder.glob("*.checkpoint.pt"):
            file.unlink()
    return told(summary, folder)


def learner_of(config: DictConfig, preferences: Preferences, folder: Path) -> Learner:
    """What learns in the configuration's layout."""
    clip, device = clip_of(config), device_of(config.device)
    if config.layout != AESTHETIC:
        return Towers(clip, preferences.pictures, config, folder, device)
    kept = Path(config.features).expanduser()
    return Head(features_of(clip, preferences.sets, kept, device), config.seed)


def measured(config: DictConfig, learner: Learner, choices: Choices) -> dict[str, Any]:
    """How well choices on held-out prompts are foreseen, from all choices and from fewer.

    Returns:
        `choices`, `ties`, `accuracy` {mean, low, high, n}, `beats_chance`, and `curve` [{choices, mean, low, high, n}].
    """
    usual = DRAWS if config.layout == AESTHETIC else 0
    draws = usual if config.draws is None else config.draws
    known = accuracy(cross_validated(learner.learn, choices, config.folds, config.seed), choices)
    return {
        "choices": len(choices),
        "ties": int((choices.outcomes == TIE).sum()),
        "accuracy": known,
        "beats_chance": beats_chance(known),
        "curve": learning_curve(learner.learn, choices, config.folds, draws, config.seed),
    }


def told(summary: dict[str, Any], folder: Path) -> str:
    """The summary for people, and what to do next."""
    known = summary["accuracy"]
    lines = [
        f"wrote {folder}: learned from {summary['choices']} choices ({summary['ties']} ties); on held-out prompts it "
        f"makes people's choice in {share_text(known)} of cases, n {known['n']} prompts"
    ]
    lines += [f"from {point['choices']} choices: {share_text(point)}" for point in summary["curve"]]
    if not summary["beats_chance"]:
        lines.append(
            "WARNING: this is no better than chance, and training on it would follow noise: rate more pairs, of more "
            "prompts, first"
        )
    return "\n".join([*lines, f"textcraftor train rewards=mine rewards.mine.path={folder}"])


def share_text(known: dict[str, float]) -> str:
    """An accuracy with its interval, which there is none of where all prompts are alike."""
    interval = "(all prompts alike)" if np.isnan(known["low"]) else interval_text(known, 3, "")
    return f"{known['mean']:.3f} {interval}"
