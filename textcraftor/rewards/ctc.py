"""Recognisers with one class a character and CTC (Graves et al. 2006) over the positions of a line."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from textcraftor.errors import UsageError
from textcraftor.rewards.reading import Recogniser, characters, too_long, unreadable


class CTC(Recogniser):
    """Subclasses implement `pixels` and `classify`.

    Args:
        names: the classes' characters, CTC's blank first.
        size: (height, width) of preprocessed crops, in pixels.
        alphabet: the only characters that it may read; None: all that it knows.
    """

    def __init__(self, names: Sequence[str], size: tuple[int, int], alphabet: str | None = None) -> None:
        super().__init__()
        known = {character: index for index, character in enumerate(names)}
        self.names, self.size, self.classes = list(names), size, None
        if alphabet is not None:
            strange = [character for character in alphabet if character not in known]
            if strange or not alphabet:
                what = f"holds {strange[0]!r}, which this recogniser does not know" if strange else "is empty"
                raise UsageError(f"alphabet={alphabet} {what}: write each character that may be read, such as ABC")
            self.names = [names[0], *dict.fromkeys(alphabet)]
            self.classes = torch.tensor([known[name] for name in self.names])
        self.index = {character: index for index, character in enumerate(self.names)}

    def classify(self, pixels: Tensor) -> Float[Tensor, "crops positions classes"]:
        """The logits of every class at every position."""
        raise NotImplementedError

    def encode(self, pixels: Tensor) -> Float[Tensor, "crops positions features"]:
        seen = self.classify(pixels)
        return seen if self.classes is None else seen[..., self.classes.to(seen.device)]

    def check(self, text: str) -> None:
        strange = [character for character in text if character not in self.index]
        if strange:
            raise unreadable(text, strange[0])
        places = len(text) + sum(a == b for a, b in pairwise(text))  # CTC parts equal neighbours by a blank
        if places > self.places:
            raise too_long(text, f"needs {places} places", f"{self.places} places")

    @cached_property
    @torch.no_grad()
    def places(self) -> int:
        """How many characters and blanks it says of a crop, of whatever size: all are padded to one width."""
        weight = next(self.parameters())
        return self.encode(torch.zeros(1, self.channels, *self.size, device=weight.device)).shape[1]

    @property
    def channels(self) -> int:
        """Of preprocessed crops."""
        return 3

    def log_likelihood(
        self, seen: Float[Tensor, "pairs positions features"], texts: Sequence[str]
    ) -> Float[Tensor, " pairs"]:
        for text in dict.fromkeys(texts):
            self.check(text)
        targets = [torch.tensor([self.index[character] for character in text], dtype=torch.long) for text in texts]
        losses = nn.functional.ctc_loss(
            seen.log_softmax(-1).transpose(0, 1),
            nn.utils.rnn.pad_sequence(targets, batch_first=True).to(seen.device),
            torch.full((len(texts),), seen.shape[1]),
            torch.tensor([len(target) for target in targets]),
            reduction="none",
        )
        return -losses / characters(texts).to(seen)

    def read(self, seen: Float[Tensor, "crops positions features"]) -> list[str]:
        best = seen.argmax(-1)
        fresh = torch.cat([torch.ones_like(best[:, :1], dtype=torch.bool), best[:, 1:] != best[:, :-1]], 1)
        return [
            "".join(self.names[index] for index, keep in zip(row, new, strict=True) if keep and index != 0).strip()
            for row, new in zip(best.tolist(), fresh.tolist(), strict=True)
        ]
