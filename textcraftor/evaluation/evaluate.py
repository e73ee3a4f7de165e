"""Scores the pictures of fixed prompts and seeds by every reward and, where there is one, by a judge."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from textcraftor.evaluation.statistics import paired_difference
from textcraftor.inference.generate import Sampling, batches, generate, grid
from textcraftor.models.base import DiffusionModel
from textcraftor.rewards.mix import RewardMix
from textcraftor.sampling.conditioning import ConditioningSchedule

Judge = Callable[[Tensor, Sequence[str]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model: every measure an array (prompts, seeds), and the pictures."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    images: Float[Tensor, "prompts seeds 3 height width"]
    measures: dict[str, np.ndarray]

    def means(self) -> dict[str, float]:
        """Each measure's mean over all pictures that it applies to."""
        return {name: float(np.nanmean(values)) for name, values in self.measures.items()}


def diversity(images: Float[Tensor, "seeds 3 height width"]) -> float:
    """Mean root-mean-square pixel difference between the pictures of one prompt from several seeds."""
    flat = images.detach().float().flatten(1)
    pairs = itertools.combinations(range(len(flat)), 2)
    return float(np.mean([(flat[i] - flat[j]).pow(2).mean().sqrt().item() for i, j in pairs]))


@torch.no_grad()
def evaluate(
    model: DiffusionModel,
    schedule: ConditioningSchedule,
    sampling: Sampling,
    mix: RewardMix,
    judge: Judge | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int = 16,
) -> Evaluation:
    """Generate every prompt with every seed and measure each picture; touches no random state."""
    jobs = grid(prompts, seeds)
    images = generate(model, jobs, schedule, sampling, batch_size)
    texts = [prompt for prompt, _ in jobs]
    scores: dict[str, list[np.ndarray]] = {}
    for batch, said in zip(images.split(batch_size), batches(texts, batch_size), strict=True):
        parts = mix(batch.to(model.device), said)
        for name, score in {**parts, "total": mix.total(parts), **mix.measure(batch.to(model.device), said)}.items():
            scores.setdefault(name, []).append(score.float().cpu().numpy())
    figures = {name: np.concatenate(parts) for name, parts in scores.items()}
    if judge is not None:
        figures |= {f"judge/{name}": values for name, values in judge(images, texts).items()}
    shape = (len(prompts), len(seeds))
    images = images.unflatten(0, shape)
    # A measure that applies to none of these prompts, as letters without a word, is left out.
    measures = {name: values.reshape(shape) for name, values in figures.items() if not np.isnan(values).all()}
    if len(seeds) > 1:
        per_prompt = np.array([[diversity(group)] for group in images])
        measures["diversity"] = np.repeat(per_prompt, len(seeds), axis=1)
    return Evaluation(tuple(prompts), tuple(seeds), images, measures)


def compare(before: Evaluation, after: Evaluation) -> dict[str, dict[str, float]]:
    """The paired difference after - before of every measure."""
    return {name: paired_difference(before.measures[name], after.measures[name]) for name in before.measures}
