"""`textcraftor tune-captions`: tuning on captioned pictures."""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from textcraftor.data.blend import Blend, RecordDraw
from textcraftor.data.prompts import read_prompts
from textcraftor.data.records import Records, check_records
from textcraftor.errors import UsageError
from textcraftor.training.caption_tuning import CaptionTuning
from textcraftor.training.checks import check_tuning
from textcraftor.training.job import Job, prepare
from textcraftor.training.latents import bucket_sizes, encode_records
from textcraftor.training.run import run_job, say


def check(config: DictConfig, folder: Path) -> None:
    """Refuse a configuration with the value, the rule and the remedy, before any model is loaded."""
    for key in ("p", "dropout"):
        if not 0 <= config.captions[key] <= 1:
            raise UsageError(f"captions.{key}={config.captions[key]} is a probability: it must lie in [0, 1]")
    if config.data.letters.path is not None and not 0 <= config.data.letters.share < 1:
        raise UsageError(f"data.letters.share={config.data.letters.share} must lie in [0, 1)")
    if config.data.aspect_ratio < 1:
        raise UsageError(f"data.aspect_ratio={config.data.aspect_ratio} must be at least 1")
    if config.data.held_out < 2:
        raise UsageError(f"data.held_out={config.data.held_out} must be at least 2: one to watch, one to evaluate")
    for key in ("noise_bias", "min_snr"):
        value = config.denoising[key]
        if value is not None and not value > 0:
            raise UsageError(f"denoising.{key}={value} must be above 0")
    check_records(config.data.path, config.data.captions)
    if config.data.letters.path is not None:
        check_records(config.data.letters.path)
    if config.prompts.held_out:
        read_prompts(config.prompts.held_out)
    check_tuning(config, folder)


def split(config: DictConfig, records: Records) -> tuple[Records, list[str], list[str]]:
    """The records to learn from, and the prompts to evaluate with and to watch: those of `prompts.held_out`, else the
    captions of `data.held_out` records, drawn by the seed, that are not learned from."""
    if config.prompts.held_out:
        kept, prompts = records, list(dict.fromkeys(read_prompts(config.prompts.held_out)))
    else:
        if len(records) <= config.data.held_out:
            raise UsageError(
                f"data.path holds {len(records)} pictures: not more than data.held_out={config.data.held_out}"
            )
        chosen = np.random.default_rng((config.seed, 6)).permutation(len(records))[: config.data.held_out]
        held_out = {int(index) for index in chosen}
        prompts = list(dict.fromkeys(records.records[index].caption for index in sorted(held_out)))
        kept = records.only([index for index in range(len(records)) if index not in held_out])
    watched = max(1, min(config.watch.prompts, len(prompts) // 2))
    return kept, prompts[watched:][: config.evaluation.prompts], prompts[:watched]


def load(config: DictConfig, cache: Path) -> Job:
    """What a checked configuration means; latents are kept in the folder `cache`."""
    blend = Blend(config.captions.p, config.captions.kind, config.captions.dropout, config.seed)
    main, evaluated, watched = split(config, Records.read(config.data.path, config.data.captions))
    blend.check(main.records)
    letters = Records.read(config.data.letters.path) if config.data.letters.path is not None else None
    captions = [caption for one in (main, letters) if one for caption in one.captions]

    def objective_of(job: Job) -> CaptionTuning:
        model, size = job.model, (config.sampling.height, config.sampling.width)
        step = model.vae_scale * 2 ** (len(model.unet.config.block_out_channels) - 1)
        sizes = bucket_sizes(*size, step, config.data.aspect_ratio)
        records, latents = encode_records(model, main, sizes, cache / "main")
        say(records.told())
        extra = range(0)
        if letters is not None:
            drawn, more = encode_records(model, letters, sizes, cache / "letters")
            say(drawn.told())
            extra = range(len(records), len(records) + len(drawn))
            latents = latents.joined(more)
        say(latents.told())
        learned = [*records.records, *(drawn.records if letters is not None else [])]
        draw = RecordDraw(learned, latents.buckets, blend, config.seed, extra, config.data.letters.share)
        return CaptionTuning(model, job.schedule, draw, latents, config.denoising.noise_bias, config.denoising.min_snr)

    return prepare(config, objective_of, captions, evaluated, watched)


def run(config: DictConfig, folder: Path) -> float | str:
    """Evaluate, tune on captions, evaluate again, report. Returns the held-out figure, for sweeps."""
    check(config, folder)
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch) if config.dry_run else folder / "latents"
        try:
            figure = run_job("tune-captions", config, folder, partial(load, cache=cache))
        except BaseException:
            if not (folder / "config.yaml").exists():  # nothing to go on with
                shutil.rmtree(cache, ignore_errors=True)
            raise
        shutil.rmtree(cache, ignore_errors=True)
    return figure
