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

    Epochs follow each other without a gap: a batch may begin in one and end in the next, so that every record is drawn
    equally often whatever the batch size. Batches have one size of pictures, but for those that the sizes' remainders
    share.

    Args:
        records: all of them.
        buckets: indices of the records whose pictures have one size.
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
        self.bucket_of = np.full(len(records), -1)
        for number, bucket in enumerate(buckets):
            self.bucket_of[list(bucket)] = number
        known = {index for bucket in buckets for index in bucket}
        self.extra = np.array(sorted(known & set(extra)), dtype=int)
        self.main = np.array(sorted(known - set(extra)), dtype=int)
        share = share if len(self.extra) else 0.0
        self.extra_count = round(share / (1 - share) * len(self.main))
        self._epoch = lru_cache(maxsize=4)(self._draw_epoch)

    def __len__(self) -> int:
        """Draws of an epoch."""
        return len(self.main) + self.extra_count

    def _draw_epoch(self, number: int, batch_size: int) -> list[int]:
        """Every record once, and the extra ones in their share; the first of them fill up the last epoch's batch."""
        rng = np.random.default_rng((self.seed, number, 4))
        order = rng.permutation(np.concatenate([self.main, self._extra_of(number)]))
        filling = -len(self) * number % batch_size
        first, rest = order[:filling].tolist(), order[filling:]
        batches, left = list[list[int]](), list[int]()
        for bucket in np.unique(self.bucket_of[rest]):
            some = rest[self.bucket_of[rest] == bucket].tolist()
            whole = len(some) // batch_size * batch_size
            batches += [some[start : start + batch_size] for start in range(0, whole, batch_size)]
            left += some[whole:]
        whole = len(left) // batch_size * batch_size
        batches += [left[start : start + batch_size] for start in range(0, whole, batch_size)]
        shuffled = [index for batch in rng.permutation(len(batches)) for index in batches[batch]]
        return [*first, *shuffled, *left[whole:]]

    def _extra_of(self, number: int) -> np.ndarray:
        """The extra records of an epoch, who take turns: all of them are shown before one is shown again."""
        turns = [
            divmod(place, len(self.extra))
            for place in range(number * self.extra_count, (number + 1) * self.extra_count)
        ]
        orders = {turn: np.random.default_rng((self.seed, turn, 8)).permutation(self.extra) for turn, _ in turns}
        return np.array([orders[turn][place] for turn, place in turns], dtype=int)

    def __call__(self, step: int, batch_size: int) -> list[Example]:
        """One step's examples, `batch_size` of them."""
        examples = []
        for row in range(batch_size):
            epoch, place = divmod(step * batch_size + row, len(self))
            index = self._epoch(epoch, batch_size)[place]
            rng = np.random.default_rng((self.seed, step, row, 5))
            seed, level = int(rng.integers(2**40, 2**48)), float(rng.random())
            examples.append(Example(index, self.blend(self.records[index], epoch, index), seed, level))
        return examples
