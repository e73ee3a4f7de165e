"""Faults that the parity check must notice, put into our side from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from textcraftor.rewards import preprocessing
from textcraftor.rewards.base import Reward
from textcraftor.rewards.text import PromptTokenizer

Injection = Callable[[Reward], AbstractContextManager[bool]]


@dataclass(frozen=True)
class Fault:
    """A way to be wrong.

    Args:
        name: in the table.
        inject: puts it in, and says whether it applies to a scorer.
        noticed_by: how the names of the checks begin, one of which must fail.
        changes_model: so the checks from the same pixels are needed.
    """

    name: str
    inject: Injection
    noticed_by: str
    changes_model: bool = False


def average_matrix(source: int, target: int, *_: object) -> Tensor:
    return nn.functional.adaptive_avg_pool1d(torch.eye(source, dtype=torch.float64)[None], target)[0].T


@contextmanager
def average_pooling(scorer: Reward) -> Iterator[bool]:
    with patch.object(preprocessing, "resize_matrix", average_matrix):
        yield True


@contextmanager
def wrong_mean(scorer: Reward) -> Iterator[bool]:
    right = preprocessing.normalize
    with patch.object(preprocessing, "normalize", lambda images, mean, std: right(images, (0.5, 0.5, 0.5), std)):
        yield True


@contextmanager
def other_activation(scorer: Reward) -> Iterator[bool]:
    """quick_gelu for gelu, gelu for quick_gelu, in the vision tower and in CLIP's text tower."""
    layers = [module for module in scorer.modules() if hasattr(module, "activation_fn")]
    kept = [layer.activation_fn for layer in layers]
    quick = type(ACT2FN["quick_gelu"])
    for layer in layers:
        layer.activation_fn = ACT2FN["gelu" if isinstance(layer.activation_fn, quick) else "quick_gelu"]
    try:
        yield bool(layers)
    finally:
        for layer, activation in zip(layers, kept, strict=True):
            layer.activation_fn = activation


@contextmanager
def wrong_pad(scorer: Reward) -> Iterator[bool]:
    """Pads with 1."""
    right = PromptTokenizer.__call__

    def padded(self: PromptTokenizer, prompts: list[str]) -> dict[str, Tensor]:
        tokens = right(self, prompts)
        tokens["input_ids"] = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, 1)
        return tokens

    with patch.object(PromptTokenizer, "__call__", padded):
        yield hasattr(scorer, "tokens")


FAULTS = (
    Fault("average pooling for bicubic", average_pooling, "same file: pixels"),
    Fault("another mean", wrong_mean, "same file: pixels"),
    Fault("the other of gelu and quick_gelu", other_activation, "same pixels", changes_model=True),
    Fault("pad id 1", wrong_pad, "tokens ids"),
)
