"""The keys of the command that lets an understanding model advise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textcraftor.config.command import Computing
from textcraftor.config.data import Prompts, Understander
from textcraftor.config.fields import (
    MOST_BATCH,
    by_name,
    choice,
    flag,
    group,
    groups_by_name,
    number,
    one_seed,
    opens,
    paths_by_name,
    seed_list,
    typed_path,
    typed_text,
    whole,
    word,
)
from textcraftor.config.model import Model
from textcraftor.config.rewards import Reward
from textcraftor.config.rules import Group, is_number
from textcraftor.config.sampling import Sampling
from textcraftor.config.training import Denoising, Evaluation, Steps
from textcraftor.config.tune import Tune

STAGES = ("advise", "remake", "filter", "train")


@dataclass
class Remake(Group):
    """`remake`: how pictures are made again with the advice."""

    strength: float = number(above=0, most=1)
    """1: from the same noise; below: from the picture itself, noised, for this share of the steps."""
    scale: float = number(above=0)
    """Multiplies the strength of each region of the advice."""


@dataclass
class Filter(Group):
    """`filter`: the pairs that are learned from."""

    gain: dict[str, Any] = by_name("a finite number", is_number)
    """By scorer, or total: how much its score must rise at least."""
    least: dict[str, Any] = by_name("a finite number", is_number)
    """By scorer, or total: what the enhanced picture must score at least."""
    similarity: float | None = number(least=-1, most=1)
    """Cosine similarity of both pictures' CLIP embeddings at least; null: any."""
    clip: str | None = typed_path()
    """The CLIP for that: a folder or hub id."""
    share: float = number(above=0, most=1)
    """Of the pairs that pass, the share that rose most."""
    by: str = word()
    """The scorer whose rise ranks them, or total."""


@dataclass
class EnhanceTraining(Steps):
    """`training` of enhance: of each fit. Its steps are those of each pair, twice, with method=differential, and of all
    pairs with the others; its batches are of pairs, whatever the number of processes."""

    beta: float = number(above=0)
    """Of method=dpo: the larger, the nearer the adapters stay to the model without them."""


@dataclass
class Enhance(Computing):
    """textcraftor enhance."""

    model: Model = group()
    """What is enhanced."""
    understander: dict[str, Any] | None = opens(Understander)
    """What looks at pictures and advises."""
    tune: Tune = group()
    """What gets adapters."""
    method: str = choice(("differential", "lora", "dpo"))
    """How they learn from pairs of pictures."""
    rounds: int = whole(least=1)
    """At most; it ends earlier where a round gains nothing."""
    stage: str | None = choice(STAGES)
    """Stop after this stage of the round that is due: advise, remake, filter or train; null: go on to the end."""
    prompts: Prompts = group()
    """What pictures are made of, and what is held out."""
    limit: int | None = whole(least=1)
    """The first so many prompts; null: all."""
    seeds: list[int] = seed_list()
    """Of the noise, for each prompt."""
    remake: Remake = group()
    """How pictures are made again with the advice."""
    filter: Filter = group()
    """The pairs that are learned from."""
    training: EnhanceTraining = group()
    """How long adapters learn."""
    denoising: Denoising = group()
    """The loss."""
    rewards: dict[str, Reward | None] = groups_by_name("reward and weight")
    """What judges the pictures, by name."""
    evaluation: Evaluation = group()
    """Held-out prompts before and after each round."""
    tuned: dict[str, str] = paths_by_name()
    """Begin with what that run tuned."""
    any_base: bool = flag()
    """Begin with what was tuned on another model."""
    negative_prompt: str | None = typed_text()
    """Of the second branch of guidance."""
    sampling: Sampling = group()
    """How pictures are sampled."""
    batch_size: int = whole(least=1, most=MOST_BATCH)
    """Pictures at a time."""
    seed: int = one_seed()
    """Of all that is drawn."""
    dtype: str = word()
    """Of the frozen parts: float32, bfloat16, float16 or auto; what learns is always float32."""
    scorer_dtype: str = word()
    """Of the scorers; bfloat16 halves their memory."""
