"""The protocol of every text recogniser: how likely is it that a crop of a picture says a given text?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from textcraftor.errors import UsageError


class Recogniser(nn.Module):
    """A frozen reader of single lines. Crops are float (crops, 3, height, width) in [0, 1]."""

    def check(self, text: str) -> None:
        """Refuse a text that this recogniser cannot read.

        Raises:
            UsageError: it has a character that is not known, or is too long.
        """

    def pixels(self, crops: Float[Tensor, "crops 3 height width"]) -> Tensor:
        """The published preprocessing: one size for all crops, so that those of several sizes can be joined."""
        raise NotImplementedError

    def encode(self, pixels: Tensor) -> Float[Tensor, "crops positions features"]:
        """What the recogniser sees in each crop."""
        raise NotImplementedError

    def log_likelihood(
        self, seen: Float[Tensor, "pairs positions features"], texts: Sequence[str]
    ) -> Float[Tensor, " pairs"]:
        """log P(text | crop) per character, one text for each crop; `""` asks for P(no text).

        Raises:
            UsageError: see `check`.
        """
        raise NotImplementedError

    def read(self, seen: Float[Tensor, "crops positions features"]) -> list[str]:
        """The most likely text of each crop, greedily."""
        raise NotImplementedError


def unreadable(text: str, what: str) -> UsageError:
    """What to answer for a text that a recogniser has no letters for."""
    return UsageError(
        f"the wanted text {text!r} holds {what!r}, which this recogniser cannot read: write it otherwise, such as in "
        "capitals, or take the prompt out"
    )


def too_long(text: str, needs: str, most: str) -> UsageError:
    """What to answer for a text that no recogniser's answer can hold."""
    return UsageError(
        f"the wanted text {text!r} {needs}, longer than the {most} that this recogniser reads: quote it in parts"
    )


def characters(texts: Sequence[str]) -> Tensor:
    """The length of each text, at least 1."""
    return torch.tensor([max(1, len(text)) for text in texts])
