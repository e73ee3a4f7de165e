"""What learns, and how fast: the parts of a model under diffusers' names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from textcraftor.config.fields import MOST_RANK, anything, number, number_list, number_or, whole
from textcraftor.config.rules import Group
from textcraftor.errors import UsageError

AUTO = "auto"


@dataclass
class Lora(Group):
    """`tune.<part>.lora`: low-rank adapters (Hu et al. 2021) instead of all weights."""

    rank: int = whole(least=1, most=MOST_RANK, default=8)
    """Of the update."""
    alpha: float = number(above=0, default=8.0)
    """The update is scaled by alpha / rank."""
    target_modules: Any = anything(
        "auto, a regular expression, or a list of ends of names",
        lambda value: isinstance(value, str) or (bool(value) and all(isinstance(one, str) for one in value)),
        default=AUTO,
    )
    """Ends of module names, or one regular expression over whole names; auto: the model family's own."""
    layers: list[int] | None = number_list("a list of numbers of layers", lambda value: all(one >= 0 for one in value))
    """Numbers of the text encoder's layers; null: all."""


@dataclass
class Part(Group):
    """`tune.<part>`: one network that learns."""

    lr: Any = number_or(AUTO, above=0, default=AUTO)
    """Its learning rate; auto: optim.lr, else what suits the model, model.training.lr."""
    lora: Lora | None = None
    """Adapters that learn instead of all weights; null: all of it."""
    span: list[float] = number_list(
        "a share of the steps, within [0, 1]",
        lambda value: len(value) == 2 and 0 <= value[0] < value[1] <= 1,
        default=(0, 1),
    )
    """The share of the steps in which it learns."""


@dataclass
class Tune(Group):
    """`tune`: the parts that learn; null leaves a part as it is."""

    text_encoder: Part | None = None
    """The first text encoder."""
    text_encoder_2: Part | None = None
    """The second one, where the model has it."""
    text_encoder_3: Part | None = None
    """The third one, where the model has it."""
    denoiser: Part | None = None
    """The denoiser: a UNet or a transformer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        spans = sorted(tuple(part.span) for part in vars(self).values() if part is not None)
        if not spans:
            raise UsageError(
                "tune names nothing to learn: choose tune=text_encoder, denoiser, both, or a form with _lora"
            )
        gap = any(
            later[0] > max(end for _, end in spans[:count]) for count, (_, later) in enumerate(pairwise(spans), 1)
        )
        if spans[0][0] > 0 or max(end for _, end in spans) < 1 or gap:
            raise UsageError(f"tune: the spans {spans} leave steps in which nothing learns; they must cover [0, 1]")


def tuned_parts(tune: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each part that learns, by name."""
    return ((str(part), options) for part, options in tune.items() if options is not None)


def rates_of(config: Any) -> dict[str, float]:
    """Each learning part's rate: its own, else `optim.lr`, else what suits the model and the way that it is tuned."""
    return {part: rate_of(config, part) for part, _ in tuned_parts(config.tune)}


def rate_of(config: Any, part: str) -> float:
    """The learning rate of one part."""
    options = config.tune[part]
    kind = part if part == "denoiser" else "text_encoder"
    suited = config.model.training.lr[f"{kind}_lora" if options.lora else kind]
    usual = config.optim.lr if "optim" in config else AUTO
    return next(float(rate) for rate in (options.lr, usual, suited) if rate != AUTO)
