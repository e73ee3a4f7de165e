"""The commands as functions: keys as strings, keywords and dictionaries; results as objects.

Every function takes the keys of the command of its name. A string is read as on the command line, `"gradient.k=3"`. A
keyword's value is data: `training={"steps": 40}` sets single keys, a text is a configuration's name where the key is a
group of them, as `rewards="hpsv2"`, and otherwise means itself. A key with dots is given as `**{"model.path": path}`.

Every function raises `UsageError` for what the command line would answer with one line.
"""

from __future__ import annotations

from typing import Any, Literal, overload

from textcraftor.api.calling import call
from textcraftor.api.results import Comparison, Evaluation, Folder, Measured, Pictures, Run, Scores


@overload
def train(*keys: str, dry_run: Literal[True], **values: Any) -> str: ...
@overload
def train(*keys: str, **values: Any) -> Run: ...
def train(*keys: str, **values: Any) -> Run | str:
    """Tune by reward.

    Args:
        values: beside plain ones, `model` may be a loaded pipeline of diffusers, which stays as it is; `rewards` a
            dictionary of scorers, each a function or module of images (batch, 3, height, width) in [0, 1] and prompts
            that returns (batch,), alone or with its weight, or the weight of one of ours; `prompts` a list of texts.

    Returns:
        the run; with `dry_run=True` what it would need, in one line.
    """
    folder, config, result = call("train", keys, values)
    return str(result) if config.dry_run else Run(folder)


def enhance(*keys: str, **values: Any) -> Run:
    """Learn from what an understanding model advises on pictures; see `train` for `model`, `rewards` and `prompts`."""
    return Run(call("enhance", keys, values)[0])


def generate(*keys: str, **values: Any) -> Pictures:
    """Make pictures; `prompts` may be a list of texts, `model` a loaded pipeline."""
    return Pictures(call("generate", keys, values)[0])


def evaluate(*keys: str, **values: Any) -> Evaluation:
    """Measure a tuned encoder against the original; see `train` for `model`, `rewards` and `prompts`."""
    return Evaluation(call("evaluate", keys, values)[0])


def score(*keys: str, **values: Any) -> Scores:
    """Score a folder of pictures; see `train` for `rewards`. `prompts` may be a list, one each by file name."""
    return Scores(call("score", keys, values)[0])


def compare(*keys: str, **values: Any) -> Comparison:
    """Set runs beside each other: `compare(runs=[one, other])`."""
    return Comparison(call("compare", keys, values)[0])


def train_reward(*keys: str, **values: Any) -> Measured:
    """Learn a reward from people's ratings: `train_reward(ratings=[file], models={"base": base, "tuned": tuned})`."""
    return Measured(call("train-reward", keys, values)[0])


def export(*keys: str, **values: Any) -> Folder:
    """Write what was tuned for diffusers, web UIs and the hub."""
    return Folder(call("export", keys, values)[0])
