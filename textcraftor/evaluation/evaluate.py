"""Scores the pictures of fixed prompts and seeds by every reward and, where there is one, by a judge."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from jaxtyping import UInt8
from torch import Tensor

from textcraftor.captioning.upsample import Upsampler
from textcraftor.errors import UsageError, one_line
from textcraftor.evaluation.image_statistics import image_statistics
from textcraftor.evaluation.statistics import paired_difference
from textcraftor.files.reading import read_arrays
from textcraftor.files.writing import replacing
from textcraftor.inference.generate import Sampling, batches, generate, grid
from textcraftor.models.model import Model
from textcraftor.rewards.total import RewardSum
from textcraftor.sampling.conditioning import ConditioningSchedule

Judge = Callable[[Tensor, Sequence[str]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model: every measure an array (prompts, seeds), and the pictures, of 8 bits a channel."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    images: UInt8[Tensor, "prompts seeds 3 height width"]
    measures: dict[str, np.ndarray]

    def means(self) -> dict[str, float]:
        """Each measure's mean over all pictures that it applies to."""
        return means(self.measures)

    def save(self, file: Path) -> None:
        """Write everything, uncompressed."""
        figures = {f"measures/{name}": values for name, values in self.measures.items()}
        seeds = np.array(self.seeds, np.uint64)  # beside small ones numpy would round those of 64 bits
        with replacing(file) as partial:
            np.savez(partial, prompts=self.prompts, seeds=seeds, images=self.images.numpy(), **figures)  # type: ignore[arg-type]

    @classmethod
    def load(cls, file: Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            UsageError: it is damaged.
        """
        stored = read_arrays(file)
        try:
            figures = {name.removeprefix("measures/"): stored[name] for name in stored if name.startswith("measures/")}
            prompts, seeds = tuple(map(str, stored["prompts"])), tuple(map(int, stored["seeds"]))
            images, shape = torch.from_numpy(stored["images"]), (len(prompts), len(seeds))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"{file} is damaged ({one_line(error)}): take it away") from error
        whole = images.dtype == torch.uint8 and images.ndim == 5 and images.shape[:3] == (*shape, 3)
        like = all(one.shape == shape and one.dtype.kind == "f" for one in figures.values())
        if not (whole and like and "total" in figures):
            raise UsageError(f"{file} is damaged (pictures or figures of another shape): take it away")
        if any(np.isinf(one).any() or np.isnan(one).all() for one in figures.values()):
            raise UsageError(f"{file} is damaged (figures that are not finite): take it away")
        return cls(prompts, seeds, images, figures)


def distance(first: UInt8[Tensor, ...], second: UInt8[Tensor, ...]) -> float:
    """Root-mean-square difference of two pictures' pixels, in [0, 1]."""
    return (first.float() - second.float()).pow(2).mean().sqrt().item() / 255


def diversity(images: UInt8[Tensor, "seeds 3 height width"]) -> float:
    """Mean distance between the pictures of one prompt from several seeds."""
    return float(np.mean([distance(one, other) for one, other in itertools.combinations(images, 2)]))


@torch.no_grad()
def evaluate(
    model: Model,
    schedule: ConditioningSchedule,
    sampling: Sampling,
    rewards: RewardSum,
    judge: Judge | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int = 16,
    before: Evaluation | None = None,
) -> Evaluation:
    """Generate every prompt with every seed and measure each picture; processes of one launch share the work.

    Args:
        before: the same prompts and seeds by the untuned model: adds `drift`, each picture's distance from its own.
    """
    jobs, processes = grid(prompts, seeds), PartialState()
    shares = [range(len(jobs))[rank :: processes.num_processes] for rank in range(processes.num_processes)]
    mine = [jobs[row] for row in shares[processes.process_index]] or jobs[:1]
    mine += mine[-1:] * (len(shares[0]) - len(mine))  # everyone calls the model as often as the others
    parts = gather_object([measure(model, schedule, sampling, rewards, judge, mine, batch_size)])
    order, shape = np.argsort(np.concatenate(shares)), (len(prompts), len(seeds))
    joined = {
        name: np.concatenate([part[name][: len(share)] for part, share in zip(parts, shares, strict=True)])[order]
        for name in parts[0]
    }
    images = torch.from_numpy(joined.pop("pictures")).unflatten(0, shape)
    # A measure that applies to none of these prompts, as letters without a word, is left out.
    measures = {name: values.reshape(shape) for name, values in joined.items() if not np.isnan(values).all()}
    if len(seeds) > 1:
        per_prompt = np.array([[diversity(group)] for group in images])
        measures["diversity"] = np.repeat(per_prompt, len(seeds), axis=1)
    if before is not None:
        pairs = zip(images.flatten(0, 1), before.images.flatten(0, 1), strict=True)
        measures["drift"] = np.array([distance(*pair) for pair in pairs]).reshape(shape)
    return Evaluation(tuple(prompts), tuple(seeds), images, measures)


def measure(
    model: Model,
    schedule: ConditioningSchedule,
    sampling: Sampling,
    rewards: RewardSum,
    judge: Judge | None,
    jobs: Sequence[tuple[str, int]],
    batch_size: int,
    upsampler: Upsampler | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Make a picture for each (prompt, seed); returns each measure, one value a picture, and `pictures`, as uint8.

    Args:
        upsampler: writes the prompts that the encoders read; scorers and judge read the prompts as they are.
        options: of `generate`, as regions.
    """
    texts = [prompt for prompt, _ in jobs]
    read = upsampler(texts) if upsampler else texts
    wanted = list(zip(read, (seed for _, seed in jobs), strict=True))
    images = generate(model, wanted, schedule, sampling, batch_size, **options)
    scores: dict[str, list[np.ndarray]] = {}
    for batch, prompts in zip(images.split(batch_size), batches(texts, batch_size), strict=True):
        shown = batch.to(model.device)
        parts = rewards(shown, prompts)
        figures = {**parts, "total": rewards.total(parts), **rewards.measure(shown, prompts), **image_statistics(shown)}
        for name, score in figures.items():
            scores.setdefault(name, []).append(score.float().cpu().numpy())
    measures = {name: np.concatenate(values) for name, values in scores.items()}
    if judge is not None:
        measures |= {f"judge/{name}": values for name, values in judge(images, texts).items()}
    return measures | {"pictures": (images.clamp(0, 1) * 255).round().byte().numpy()}


def standardised(evaluation: Evaluation, before: Evaluation, name: str, spread: float) -> float:
    """The change of a measure's mean, in units of a spread."""
    change = np.nanmean(evaluation.measures[name]) - np.nanmean(before.measures[name])
    return float(change / max(spread, 1e-6))


def means(measures: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of measures by name: each one's mean over all pictures that it applies to."""
    return {name: float(np.nanmean(values)) for name, values in measures.items()}


def best_of(measures: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Each measure's mean over one picture a prompt, that with the highest trained total: what choosing the best of
    several pictures gains, at so many times the cost.

    Args:
        measures: each (prompts, seeds), `total` among them; those of several pictures together are left out.

    Returns:
        nothing where every prompt has one picture.
    """
    if measures["total"].shape[1] == 1:
        return {}
    best = measures["total"].argmax(1)[:, None]
    chosen = {name: np.take_along_axis(values, best, 1) for name, values in measures.items()}
    return means({name: values for name, values in chosen.items() if name not in ("diversity", "drift")})


def compare(before: Evaluation, after: Evaluation) -> dict[str, dict[str, float]]:
    """The paired difference after - before of every measure that both have."""
    return compare_measures(before.measures, after.measures)


def changes_by_prompt(before: Evaluation, after: Evaluation) -> dict[str, list[float]]:
    """after - before of every measure that both have, prompt by prompt: what several runs are compared by."""
    return {
        name: (after.measures[name] - values).mean(1, dtype=float).tolist()
        for name, values in before.measures.items()
        if name in after.measures
    }


def compare_measures(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """The same of measures by name, each (prompts, seeds)."""
    return {name: paired_difference(before[name], after[name]) for name in before if name in after}
