"""`textcraftor train`: tuning by reward."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from textcraftor.config.making import made
from textcraftor.data.prompts import PromptDraw
from textcraftor.training.checks import check, from_pictures, split_prompts
from textcraftor.training.job import Job, prepare
from textcraftor.training.latents import PictureDraw
from textcraftor.training.pictures import Pictures, kept_while_running
from textcraftor.training.prediction import has_weights, prediction
from textcraftor.training.processes import show
from textcraftor.training.reward_tuning import RewardTuning
from textcraftor.training.run import run_job

__all__ = ["check", "run"]


def load(config: DictConfig, cache: Path | None = None) -> Job:
    """What a checked configuration means; latents of pictures, where it wants any, are kept in the folder `cache`."""
    if from_pictures(config):
        pictures = Pictures.read(config)
        prompts, evaluated, watched = pictures.captions, pictures.evaluated, pictures.watched
    else:
        prompts, evaluated, watched = split_prompts(config, show)

    def objective_of(job: Job) -> RewardTuning:
        if from_pictures(config):
            assert cache is not None
            draw: PromptDraw | PictureDraw = PictureDraw(*pictures.encode(job.model, cache, shapes=False))
        else:
            draw = PromptDraw(prompts, config.seed)
        detach_negative = config.conditioning.detach_negative
        rollout = made(config.gradient)
        sampling = replace(job.sampling, **config.training.sampling)
        return RewardTuning(job.model, job.rewards, rollout, job.schedule, sampling, draw, detach_negative)

    return prepare(config, objective_of, prompts, evaluated, watched)


def run(config: DictConfig, folder: Path) -> float | str:
    """Evaluate, tune by reward, evaluate again, report. Returns the held-out figure after tuning, for sweeps."""
    check(config, folder)
    if config.dry_run and not has_weights(config.model.path):
        return prediction(config)
    with kept_while_running(config, folder) as cache:
        return run_job("train", config, folder, partial(load, cache=cache))
