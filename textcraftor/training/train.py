"""`textcraftor train`: tuning by reward."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from textcraftor.data.prompts import PromptDraw
from textcraftor.training.checks import check, split_prompts
from textcraftor.training.job import Job, prepare
from textcraftor.training.reward_tuning import RewardTuning
from textcraftor.training.run import run_job

__all__ = ["check", "run"]


def load(config: DictConfig) -> Job:
    """What a checked configuration means."""
    prompts, evaluated, watched = split_prompts(config)

    def objective_of(job: Job) -> RewardTuning:
        rollout, draw = instantiate(config.gradient), PromptDraw(prompts, config.seed)
        detach_negative = config.conditioning.detach_negative
        return RewardTuning(job.model, job.mix, rollout, job.schedule, job.sampling, draw, detach_negative)

    return prepare(config, objective_of, prompts, evaluated, watched)


def run(config: DictConfig, folder: Path) -> float | str:
    """Evaluate, tune by reward, evaluate again, report. Returns the held-out figure after tuning, for sweeps."""
    check(config, folder)
    return run_job("train", config, folder, load)
