"""The captioned pictures that a run learns from: read, held out, encoded, drawn."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from textcraftor.data.blend import Blend, RecordDraw
from textcraftor.data.prompt_files import read_prompts
from textcraftor.data.prompts import split_held_out
from textcraftor.data.records import Records, check_records
from textcraftor.errors import UsageError
from textcraftor.models.model import Model
from textcraftor.rewards.total import judged_by_readers
from textcraftor.training.latents import LATENTS, Latents, bucket_sizes, encode_records
from textcraftor.training.processes import say, show


def check_pictures(config: DictConfig) -> None:
    """Refuse files that are not there."""
    check_records(config.data.path, config.data.captions)
    if config.data.letters.path is not None:
        check_records(config.data.letters.path)
    if config.prompts.held_out:
        read_prompts(config.prompts.held_out, config.prompts.column, "prompts.held_out")


@dataclass(frozen=True)
class Pictures:
    """What a configuration's keys data, captions and prompts mean.

    Args:
        records, letters: to learn from.
        evaluated, watched: prompts that are not.
    """

    config: DictConfig
    blend: Blend
    records: Records
    letters: Records | None
    evaluated: list[str]
    watched: list[str]

    @classmethod
    def read(cls, config: DictConfig) -> Pictures:
        """Prompts are those of `prompts.held_out`, else the captions of `data.held_out` records, drawn by the seed,
        that are not learned from."""
        blend = Blend(**config.captions, seed=config.seed)
        data, count = config.data, config.data.held_out
        records = Records.read(data.path, data.captions, data.split)
        if config.prompts.held_out:
            prompts = read_prompts(config.prompts.held_out, config.prompts.column, "prompts.held_out", show)
        elif len(records) <= count:
            raise UsageError(f"data.path holds {len(records)} pictures: not more than data.held_out={count}")
        else:
            order = np.random.default_rng((config.seed, 6)).permutation(len(records))
            different = dict.fromkeys(records.records[index].caption for index in order)
            drawn = set([*different][:count])
            prompts = [text for text in dict.fromkeys(one.caption for one in records.records) if text in drawn]
        apart = set(prompts)
        records = records.only([i for i, one in enumerate(records.records) if apart.isdisjoint(one.captions)])
        if len(prompts) < 2 or not len(records):
            raise UsageError(
                f"data.path={data.path}: {len(prompts)} different captions are held out and {len(records)} pictures "
                "left to learn from; 2 and 1 are needed: change data.held_out, or give prompts.held_out="
            )
        blend.check(records.records)
        letters = Records.read(config.data.letters.path) if config.data.letters.path is not None else None
        wanted = judged_by_readers(config.rewards)
        chosen = split_held_out(prompts, config.evaluation.prompts, config.watch.prompts, wanted=wanted)
        return cls(config, blend, records, letters, *chosen)

    @property
    def captions(self) -> list[str]:
        """Every caption that may be drawn."""
        return [caption for one in (self.records, self.letters) if one for caption in one.captions]

    def encode(self, model: Model, cache: Path, shapes: bool = True) -> tuple[RecordDraw, Latents]:
        """The draw of all pictures that can be read, and their latents; prints their counts.

        Args:
            shapes: whether pictures keep their shape, instead of that of `sampling`.
        """
        config, parts = self.config, list[tuple[Records, Latents]]()
        step = model.family.bucket_step(model.pipeline)
        height, width = config.sampling.height, config.sampling.width
        sizes = bucket_sizes(height, width, step, config.data.aspect_ratio) if shapes else [(height, width)]
        for name, records in (("main", self.records), ("letters", self.letters)):
            if records is not None:
                parts.append(encode_records(model, records, sizes, cache / name))
                say(parts[-1][0].told())
        latents = parts[0][1] if len(parts) == 1 else parts[0][1].joined(parts[1][1])
        say(latents.told())
        learned, first = [record for records, _ in parts for record in records.records], len(parts[0][0])
        extra, share = range(first, len(learned)), config.data.letters.share
        return RecordDraw(learned, latents.buckets, self.blend, config.seed, extra, share), latents


@contextlib.contextmanager
def kept_while_running(config: DictConfig, folder: Path) -> Iterator[Path]:
    """The folder for latents: within the run's, until it is finished; elsewhere where nothing shall be written."""
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch) if config.dry_run else folder / LATENTS
        try:
            yield cache
        except BaseException:
            if not (folder / "config.yaml").exists():  # nothing to go on with
                shutil.rmtree(cache, ignore_errors=True)
            raise
