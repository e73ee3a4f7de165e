"""The keys of the commands that make pictures, judge them, or take away what makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textcraftor.config.command import Command, Computing
from textcraftor.config.data import PromptFile, Suite, Understander
from textcraftor.config.fields import (
    MOST_BATCH,
    by_name,
    flag,
    group,
    groups_by_name,
    opens,
    path_list,
    paths_by_name,
    region_list,
    seed_list,
    typed_path,
    typed_text,
    whole,
    word,
    word_list,
)
from textcraftor.config.judging import Judge
from textcraftor.config.mixing import Denoiser, is_list_of_weights, is_weight
from textcraftor.config.model import Model
from textcraftor.config.rewards import Reward
from textcraftor.config.sampling import Sampling, Switch


@dataclass
class Mixing(Computing):
    """What commands that mix tuned encoders have."""

    model: Model = group()
    """The base model."""
    tuned: dict[str, str] = paths_by_name()
    """Run folders by names that mix uses."""
    mix: dict[str, Any] = by_name("a finite number, or rest", is_weight)
    """Weights by name; mix.original takes the rest to 1 unless it is given; negative weights extrapolate."""
    switch: Switch = group()
    """The noise levels from which on the mix holds."""
    merge: bool = flag()
    """Add up the encoders' weights instead of their embeddings: one encoder."""
    any_base: bool = flag()
    """Put what was tuned on one model into another."""
    denoiser: Denoiser = group()
    """Which denoiser stands beside the mix."""
    negative_prompt: str | None = typed_text()
    """Of the second branch of guidance; null: none, which some models tell from the empty one."""
    sampling: Sampling = group()
    """How pictures are sampled."""


@dataclass
class Export(Mixing):
    """textcraftor export."""

    formats: list[str] | None = word_list()
    """Of diffusers, webui, kohya, checkpoint, pipeline; null: the first three as far as they apply."""
    push_to_hub: str | None = typed_text()
    """owner/name of a repository to upload the folder to."""


@dataclass
class Picturing(Mixing):
    """What commands that make pictures have."""

    upsample: bool = flag()
    """model.upsampler rewrites each prompt first, saying more."""
    seeds: list[int] = seed_list()
    """Of the noise, for each prompt."""
    batch_size: int = whole(least=1, most=MOST_BATCH)
    """Pictures at a time."""
    dtype: str = word()
    """float32, bfloat16, float16 or auto."""
    prompts: PromptFile = group()
    """A file of prompts."""


@dataclass
class Generate(Picturing):
    """textcraftor generate."""

    prompt: str | None = typed_text()
    """One prompt, taken literally."""
    regions: list[Any] = region_list()
    """Parts of each picture, sides from 0 to 1, with prompts of their own."""
    grid: dict[str, Any] = by_name("a list of weights, as {key}=[0,.5,1]", is_list_of_weights)
    """A column of pictures for each weight of the mix; two names: one downwards, one across."""


@dataclass
class Evaluate(Picturing):
    """textcraftor evaluate."""

    rewards: dict[str, Reward | None] = groups_by_name("reward and weight")
    """What judges the pictures, by name."""
    suite: Suite = group()
    """Prompts to evaluate with."""
    judge: dict[str, Any] | None = opens(Judge)
    """What judges the pictures beside the scorers and the model's own judge."""
    understander: dict[str, Any] | None = opens(Understander)
    """The model that judge=vlm asks."""
    answers: list[str] = path_list()
    """Files of a judge's earlier answers, or their folders: what stands in them is not asked again."""
    limit: int | None = whole(least=1)
    """The first so many prompts of each of the suite's categories."""
    base: str | None = typed_path()
    """The folder of another evaluation to compare with; null: the untuned model, evaluated in base/."""
    shard: str | None = word()
    """0/4 makes the first quarter of the pictures; the last shard to end writes the report."""
    scorer_dtype: str = word()
    """Of the scorers; bfloat16 halves their memory."""


@dataclass
class Score(Computing):
    """textcraftor score."""

    model: Model = group()
    """Whose scorers are used."""
    rewards: dict[str, Reward | None] = groups_by_name("reward and weight")
    """What judges the pictures, by name."""
    judge: dict[str, Any] | None = opens(Judge)
    """What judges the pictures beside the scorers."""
    understander: dict[str, Any] | None = opens(Understander)
    """The model that judge=vlm asks."""
    answers: list[str] = path_list()
    """Files of a judge's earlier answers, or their folders: what stands in them is not asked again."""
    images: str | None = typed_path()
    """A folder of pictures."""
    prompts: PromptFile = group()
    """One a line in the order of file names, or a table with the columns image and prompt; null: as pictures say."""
    strict: bool = flag()
    """Refuse a folder in which a picture says no prompt, instead of leaving the picture out."""
    batch_size: int = whole(least=1, most=MOST_BATCH)
    """Pictures at a time."""
    scorer_dtype: str = word()
    """Of the scorers; bfloat16 halves their memory."""


@dataclass
class App(Command):
    """textcraftor app."""

    device: str = word()
    """cpu, cuda, cuda:1, or auto: a GPU where there is one."""
    model: Model = group()
    """The base model."""
    runs: list[str] = path_list()
    """Folders of finished runs; on the command line simply their paths."""
    negative_prompt: str | None = typed_text()
    """Of the unconditional branch of guidance."""
    sampling: Sampling = group()
    """How pictures are sampled."""
    rewards: dict[str, Reward | None] = groups_by_name("reward and weight")
    """What the page says of a picture, by name."""
    any_base: bool = flag()
    """Put what was tuned on one model into another."""
    denoiser: Denoiser = group()
    """Which denoiser stands beside the mix."""
    host: str = word()
    """0.0.0.0 lets others on the network in: anyone who reaches the page can use it."""
    port: int = whole(least=0, most=65535)
    """0 takes a free one."""
    dtype: str = word()
    """float32, bfloat16, float16 or auto."""
    scorer_dtype: str = word()
    """Of the scorers; bfloat16 halves their memory."""
