"""TextCraftor: tune what reads the prompt of a text-to-image model by reward.

    import textcraftor

    run = textcraftor.train(rewards="aesthetic", training={"steps": 20}, run_dir="runs/a")
    image = pipe(**run.mix(0.6).inputs(pipe, "a red circle", num_inference_steps=25)).images[0]

`train`, `enhance`, `generate`, `evaluate`, `score`, `compare`, `train_reward` and `export` are the commands of those
names, with the same keys; `load` gives the model that keys name, and `Mix` mixed encoders for any pipeline: see
docs/python.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textcraftor.api.calling import load
    from textcraftor.api.commands import compare, enhance, evaluate, export, generate, score, train, train_reward
    from textcraftor.api.results import Run
    from textcraftor.errors import UsageError
    from textcraftor.inference.mix import Mix

# Where each name comes from; not imported before it is asked for: most bring torch and diffusers along.
_PLACES = {
    "Mix": "textcraftor.inference.mix",
    "Run": "textcraftor.api.results",
    "UsageError": "textcraftor.errors",
    "load": "textcraftor.api.calling",
    **dict.fromkeys(
        ("compare", "enhance", "evaluate", "export", "generate", "score", "train", "train_reward"),
        "textcraftor.api.commands",
    ),
}
__all__ = [
    "Mix",
    "Run",
    "UsageError",
    "compare",
    "enhance",
    "evaluate",
    "export",
    "generate",
    "load",
    "score",
    "train",
    "train_reward",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
