"""`textcraftor tune-captions`: tuning on captioned pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from textcraftor.training.caption_tuning import CaptionTuning
from textcraftor.training.checks import check_tuning
from textcraftor.training.densities import Densities
from textcraftor.training.job import Job, prepare
from textcraftor.training.pictures import Pictures, check_pictures, kept_while_running
from textcraftor.training.run import run_job


def check(config: DictConfig, folder: Path) -> None:
    """Refuse a configuration with the value, the rule and the remedy, before any model is loaded."""
    check_pictures(config)
    check_tuning(config, folder)


def load(config: DictConfig, cache: Path) -> Job:
    """What a checked configuration means; latents are kept in the folder `cache`."""
    pictures = Pictures.read(config)

    def objective_of(job: Job) -> CaptionTuning:
        draw, latents = pictures.encode(job.model, cache)
        return CaptionTuning(job.model, job.schedule, draw, latents, Densities(**config.denoising))

    return prepare(config, objective_of, pictures.captions, pictures.evaluated, pictures.watched)


def run(config: DictConfig, folder: Path) -> float | str:
    """Evaluate, tune on captions, evaluate again, report. Returns the held-out figure, for sweeps."""
    check(config, folder)
    with kept_while_running(config, folder) as cache:
        return run_job("tune-captions", config, folder, partial(load, cache=cache))
