"""How long training goes on, what it keeps, and how it is looked at on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textcraftor.config.fields import (
    MOST_BATCH,
    choice,
    choices_by_name,
    group,
    groups_by_name,
    number,
    number_or,
    seed_list,
    whole,
    word,
)
from textcraftor.config.rules import Group
from textcraftor.config.sampling import TrainingSampling

PLACES = ("resident", "while_it_works", "on_disk", "layer_by_layer", "sharded")


@dataclass
class Steps(Group):
    """What every training has."""

    steps: int = whole(least=1)
    """Optimiser steps."""
    batch_size: int = whole(least=1, most=MOST_BATCH)
    """Prompts, pictures or pairs a step, all processes together."""
    lr_schedule: str = word()
    """Of the learning rate, as diffusers names it."""
    warmup: int = whole(least=0)
    """Steps in which the learning rate rises."""
    max_grad_norm: float = number(above=0)
    """The gradient is clipped to this norm."""


@dataclass
class Training(Steps):
    """`training`: what every tuning run does."""

    lr_cycles: int = whole(least=1, default=1)
    """Of cosine_with_restarts: how often it falls from the whole rate."""
    ema_decay: float = number(least=0, below=1)
    """Above 0: watch and save a moving average of the weights."""
    checkpoint_every: int = whole(least=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = whole(least=1)
    """The newest ones that stay."""
    skip_broken: int = whole(least=0)
    """Updates that may be left out because something was not finite."""


@dataclass
class RewardTraining(Training):
    """`training` of reward tuning."""

    sampling: TrainingSampling = group()
    """Of the pictures to learn from."""


@dataclass
class Memory(Group):
    """`memory`: what may be kept for the backward pass."""

    budget: Any = number_or("auto", above=0, of="a number of GB")
    """GB: as many activations as fit are kept, others are computed again; auto: most of what is free."""
    places: dict[str, str] = choices_by_name(PLACES)
    """Of frozen parts, where the plan's choice is not wanted: by part, or `scorers`."""


@dataclass
class Processes(Group):
    """`processes`: those of one launch."""

    patience: float = number(above=0)
    """Seconds that processes wait for a late one before it is named and all end."""


@dataclass
class Alarm(Group):
    """`watch.alarms.<measure>`: limits of the change since before training."""

    low: float | None = number(default=None)
    """Rings below."""
    high: float | None = number(default=None)
    """Rings above."""


@dataclass
class Watch(Group):
    """`watch`: held-out prompts that are looked at on the way; the last point as good as the best is what is saved."""

    every: int = whole(least=1)
    """Steps between looks."""
    prompts: int = whole(least=1)
    """How many prompts are looked at; at least a third of them with words where a scorer reads."""
    seeds: list[int] = seed_list()
    """Of the noise, for each prompt."""
    alarms: dict[str, Alarm | None] = groups_by_name("low and high")
    """In standard deviations over the untuned model's pictures; `held_out` and `gap` over those of one prompt; `worst`
    in standard errors; `drift` and `embedding_drift` as they are."""


@dataclass
class Evaluation(Group):
    """`evaluation`: held-out prompts before and after training."""

    prompts: int = whole(least=1)
    """How many prompts."""
    seeds: list[int] = seed_list()
    """Of the noise, for each prompt."""
    batch_size: int = whole(least=1, most=MOST_BATCH)
    """Pictures at a time."""


@dataclass
class Denoising(Group):
    """`denoising`: the loss of tuning on captions."""

    noise_bias: float = number(above=0)
    """Above 1: high noise, where the text decides, is drawn more often."""
    min_snr: float | None = number(above=0)
    """Gamma of the min-SNR weights; null: every noise level as it comes."""
    weighting_scheme: str = choice(("logit_normal", "mode", "cosmap", "sigma_sqrt", "none"))
    """Of flow models: which noise levels are drawn and what they weigh."""
    logit_mean: float = number()
    """Of logit_normal."""
    logit_std: float = number(above=0)
    """Of logit_normal."""
    mode_scale: float = number(least=0)
    """Of mode."""


@dataclass
class Stage(Group):
    """`stages.<name>`: one captioner that is trained."""

    start: str | None = word()
    """The stage whose captioner it starts from; null: from the beginning."""
    kind: str | None = word()
    """Of the captions that it learns; null: the ground truth."""
    steps: int = whole(least=1)
    """Optimiser steps."""
    lr: float = number(above=0)
    """The learning rate."""
