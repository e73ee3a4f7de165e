"""Every command's keys."""

from __future__ import annotations

from dataclasses import dataclass

from textcraftor.config.caption_commands import Letters, Recaption, TrainCaptioner, Upsample
from textcraftor.config.claims import Claims
from textcraftor.config.command import Command, Named
from textcraftor.config.enhancing import Enhance
from textcraftor.config.fields import path_list, word
from textcraftor.config.picture_commands import App, Evaluate, Export, Generate, Score
from textcraftor.config.rating_commands import Rate, Ratings, TrainReward
from textcraftor.config.tuning_commands import Fetch, Train, TuneCaptions


@dataclass
class Compare(Named):
    """textcraftor compare."""

    runs: list[str] = path_list()
    """Folders of finished runs; on the command line simply their paths."""
    x: str = word()
    """Of the picture: a measure's change, or held_out, seconds, gb, steps."""
    y: str = word()
    """The same, upwards."""


SCHEMAS: dict[str, type[Command]] = {
    "train": Train,
    "tune-captions": TuneCaptions,
    "train-captioner": TrainCaptioner,
    "recaption": Recaption,
    "letters": Letters,
    "upsample": Upsample,
    "enhance": Enhance,
    "generate": Generate,
    "evaluate": Evaluate,
    "export": Export,
    "score": Score,
    "compare": Compare,
    "claims": Claims,
    "rate": Rate,
    "ratings": Ratings,
    "train-reward": TrainReward,
    "app": App,
    "fetch": Fetch,
}
