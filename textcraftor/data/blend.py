"""Which pictures and which of their captions a training step sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from textcraftor.data.records import Record
from textcraftor.errors import UsageError


@dataclass(frozen=True)
class Blend:
    """Draws a record's caption: a synthetic one with a fixed probability, else the ground truth ("Improving Image
    Generation with Better Captions", Betker et al. 2023, section 3).

    Args:
        p: in [0, 1], of the synthetic caption.
        kind: of the synthetic captions.
        choose: of several captions of one kind: `random`, `all` (in turn, one an epoch), `first`.
        dropout: share of captions left empty, so that guidance has a second branch.
        seed: with the epoch and the record's index it decides the draw.
    """

    p: float
    kind: str = "descriptive"
    dropout: float = 0.0
    seed: int = 0
    choose: str = "random"

    def __call__(self, record: Record, epoch: int, index: int) -> str:
        drop, blend, which = np.random.default_rng((self.seed, epoch, index, 3)).random(3)
        if drop < self.dropout:
            return ""
        synthetic = record.synthetic.get(self.kind, ())
        captions = synthetic if blend < self.p and synthetic else record.captions
        place = {"first": 0, "all": (epoch + index) % len(captions), "random": int(which * len(captions))}
        return captions[place[self.choose]]

    def check(self, records: Sequence[Record]) -> None:
        """Refuse a kind that no record has."""
        kinds = sorted({kind for record in records for kind in record.synthetic})
        if self.p > 0 and self.kind not in kinds:
            there = f"there are {', '.join(kinds)}" if kinds else "there are none; textcraftor recaption writes some"
            raise UsageError(f"captions.kind={self.kind}: no record has such captions; {there}; or captions.p=0")


@dataclass(frozen=True)
class Example:
    """One row of a training batch.

    Args:
        index: of the record.
        noise_seed: of the noise.
        level: in [0, 1), decides the timestep.
    """

    index: int
    caption: str
    noise_seed: int
    level: float


class RecordDraw:
    """The batches of every step: a function of seed and step alone, so a resumed run goes on alike.

    Args:
        records: all of them.
        buckets: indices of the records whose pictures have one size; a batch has one size.
        extra: indices of records that make up `share` of every epoch, however many there are (letters, say).
    """

    def __init__(
        self,
        records: Sequence[Record],
        buckets: Sequence[Sequence[int]],
        blend: Blend,
        seed: int,
        extra: Sequence[int] = (),
        share: float = 0.0,
    ) -> None:
        self.records, self.blend, self.seed = records, blend, seed
        self.bucket_of = {index: number for number, bucket in enumerate(buckets) for index in bucket}
        self.extra = np.array(sorted(set(extra) & set(self.bucket_of)), dtype=int)
        self.main = np.array(sorted(set(self.bucket_of) - set(extra)), dtype=int)
        self.share = share if len(self.extra) else 0.0
        self._epoch = lru_cache(maxsize=4)(self._draw_epoch)

    def _draw_epoch(self, number: int, batch_size: int) -> list[list[int]]:
        """Batches of indices: every record once, the last batch of a size filled up from its first."""
        rng = np.random.default_rng((self.seed, number, 4))
        wanted = round(self.share / (1 - self.share) * len(self.main))
        order = rng.permutation(np.concatenate([self.main, np.resize(rng.permutation(self.extra), wanted)]))
        batches = []
        for bucket in sorted(set(self.bucket_of.values())):
            indices = [int(index) for index in order if self.bucket_of[int(index)] == bucket]
            count = -(-len(indices) // batch_size)
            batches += np.resize(indices, (count, batch_size)).tolist() if count else []
        return [batches[i] for i in rng.permutation(len(batches))]

    def __call__(self, step: int, batch_size: int) -> list[Example]:
        """One step's examples, `batch_size` of them."""
        epoch, left = 0, step
        while left >= (count := len(self._epoch(epoch, batch_size))):
            epoch, left = epoch + 1, left - count
        examples = []
        for row, index in enumerate(self._epoch(epoch, batch_size)[left]):
            rng = np.random.default_rng((self.seed, step, row, 5))
            seed, level = int(rng.integers(2**40, 2**48)), float(rng.random())
            examples.append(Example(index, self.blend(self.records[index], epoch, index), seed, level))
        return examples
