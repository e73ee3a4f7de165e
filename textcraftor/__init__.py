"""TextCraftor: tune what reads the prompt of a text-to-image model by reward.

    import textcraftor

    run = textcraftor.train("rewards=aesthetic", "training.steps=20", "run_dir=runs/a")
    mix = textcraftor.Mix({"a": run}, {"a": 0.6})
    textcraftor.generate("tuned.a=runs/a", "mix.a=.6", "prompt=a red circle")

`train`, `generate`, `score` and `evaluate` are the commands of those names, with the same keys, and return the folder
that they wrote; `load` gives the model that keys name, and `Mix` the embeddings of mixed encoders for any pipeline.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from textcraftor.cli import call

if TYPE_CHECKING:
    from textcraftor.inference.mix import Mix
    from textcraftor.models.model import Model

__all__ = ["Mix", "evaluate", "generate", "load", "score", "train"]


def train(*keys: str) -> Path:
    """`textcraftor train key=value ...`; returns the run's folder."""
    return call("train", keys)


def generate(*keys: str) -> Path:
    """`textcraftor generate key=value ...`; returns the folder of pictures."""
    return call("generate", keys)


def score(*keys: str) -> Path:
    """`textcraftor score key=value ...`; returns the folder with `scores.jsonl`."""
    return call("score", keys)


def evaluate(*keys: str) -> Path:
    """`textcraftor evaluate key=value ...`; returns the folder with `rows.parquet`, `summary.json`, `report.html`."""
    return call("evaluate", keys)


def load(*keys: str) -> Model:
    """The model that keys such as `model=sd15` or `model.path=...` and `device=` name, in float32."""
    from textcraftor.config.compose import compose, register
    from textcraftor.config.overrides import as_typed
    from textcraftor.models.loading import load_model

    register()
    return load_model(compose("generate", as_typed("generate", keys)))


def __getattr__(name: str) -> Any:
    if name == "Mix":  # not before it is asked for: it brings torch and diffusers along
        from textcraftor.inference.mix import Mix

        return Mix
    raise AttributeError(f"module {__name__} has no attribute {name}")
