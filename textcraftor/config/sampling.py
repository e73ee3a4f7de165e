"""The sampler's keys, and which encoder conditions which of its steps."""

from __future__ import annotations

from dataclasses import dataclass

from textcraftor.config.fields import MOST_PIXELS, choice, flag, number, typed_text, whole, word
from textcraftor.config.rules import Group


@dataclass
class Sampling(Group):
    """`sampling`: how pictures are sampled."""

    steps: int = whole(least=1)
    """Steps of the sampler."""
    guidance_scale: float = number(least=1)
    """Of classifier-free guidance; 1 switches it off."""
    height: int = whole(least=8, most=MOST_PIXELS)
    """In pixels."""
    width: int = whole(least=8, most=MOST_PIXELS)
    """In pixels."""
    negative_prompt: str | None = typed_text()
    """Of the unconditional branch."""
    scheduler: str = word()
    """The sampler: ddim, euler, dpmsolver++ or pndm."""


@dataclass
class TrainingSampling(Group):
    """`training.sampling`: what is sampled otherwise for the pictures to learn from."""

    steps: int = whole(least=1)
    """Steps of the sampler."""
    guidance_scale: float = number(least=1)
    """Of classifier-free guidance; 1 switches it off."""


@dataclass
class Conditioning(Group):
    """`conditioning`: which steps the tuned text encoder conditions."""

    tuned_on: str = choice(("all", "last_n"))
    """All steps, or the last n of them; the original encoder conditions the others."""
    n: int = whole(least=1)
    """For last_n: so many of sampling.steps."""


@dataclass
class RewardConditioning(Conditioning):
    """`conditioning` of reward tuning."""

    detach_negative: bool = flag()
    """No gradient through the unconditional branch: another objective, less memory."""


@dataclass
class Switch(Group):
    """`switch`: the noise levels from which on the mix holds."""

    last: int | None = whole(least=1)
    """The mix in the last n of sampling.steps, the original encoder alone before; null: as the runs were tuned."""
    timestep: int | None = whole(least=0)
    """Or from this noise level on, as a training timestep."""
