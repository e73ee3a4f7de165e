"""Pictures keyed by prompt and seed: the same whatever the batch size or the order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from textcraftor.errors import UsageError
from textcraftor.models.base import Conditioning, Size
from textcraftor.models.model import Model
from textcraftor.models.sampler import Sampler
from textcraftor.sampling.chain import Chain, denoise
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.sampling.regions import Region, with_regions

SCHEDULERS = ("ddim", "euler", "dpmsolver++", "pndm")  # which of them a model knows depends on its family


@dataclass(frozen=True)
class Sampling:
    """The sampler's settings.

    Args:
        steps: of the sampler.
        guidance_scale: 1 switches guidance off.
        height, width: in pixels.
        negative_prompt: of the unconditional branch; none is not the empty one to every model.
        scheduler: ddim, euler, dpmsolver++ or pndm.

    Raises:
        UsageError: none of that can be sampled with.
    """

    steps: int
    guidance_scale: float
    height: int
    width: int
    negative_prompt: str | None = None
    scheduler: str = "ddim"

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise UsageError(f"sampling.scheduler={self.scheduler} must be one of {', '.join(SCHEDULERS)}")

    def with_steps(self, steps: int) -> Sampling:
        """The same with another number of steps."""
        return replace(self, steps=steps)

    @property
    def size(self) -> Size:
        return self.height, self.width

    def sampler(self, model: Model) -> Sampler:
        """A fresh sampler."""
        return model.sampler(self.scheduler, self.steps, self.size)

    def timesteps(self, model: Model) -> Tensor:
        """The sampler's timesteps, highest noise first; PNDM has one more than `steps`."""
        return self.sampler(model).timesteps

    def encode(
        self, model: Model, prompts: Sequence[str], encoders: Iterable[str], regions: Sequence[Sequence[Region]] = ()
    ) -> dict[str, Conditioning]:
        """What each of these encoders says of the prompts and of each picture's regions, for as many branches as
        guidance needs."""
        negatives = [self.negative_prompt] * len(prompts) if model.guided(self.guidance_scale) else None
        encoded = {name: model.encode(prompts, negatives, name, self.size) for name in encoders}
        return {name: with_regions(model, one, regions, name, self.size) for name, one in encoded.items()}

    def chain(self, model: Model, seeds: Sequence[int], **options) -> Chain:
        """One pass for these seeds, see `Chain` for the options."""
        return Chain(model, self.sampler(model), self.guidance_scale, seeds, self.height, self.width, **options)


@torch.no_grad()
def generate(
    model: Model,
    jobs: Sequence[tuple[str, int]],
    schedule: ConditioningSchedule,
    sampling: Sampling,
    batch_size: int = 16,
    regions: Sequence[Sequence[Region]] | None = None,
    originals: Float[Tensor, "jobs 3 height width"] | None = None,
    strength: float = 1.0,
) -> Float[Tensor, "jobs 3 height width"]:
    """One picture for each (prompt, seed), in [0, 1] on the CPU.

    Args:
        regions: of each job.
        originals: pictures in [0, 1] to start from, noised, instead of noise alone (SDEdit, Meng et al. 2022).
        strength: the share of the sampler's steps that is taken from there, in (0, 1].
    """
    images = []
    for rows in batches(range(len(jobs)), batch_size):
        prompts, seeds = map(list, zip(*(jobs[row] for row in rows), strict=True))
        encoded = sampling.encode(model, prompts, schedule.encoders, [regions[row] for row in rows] if regions else ())
        chain = sampling.chain(model, seeds)
        timesteps, latents = chain.timesteps, chain.start()
        if originals is not None:
            timesteps = timesteps[-max(1, round(strength * len(timesteps))) :]
            clean = model.to_latents(originals[rows.start : rows.stop] * 2 - 1)
            latents = chain.sampler.noised(clean.to(latents), chain.noise(), timesteps[0])
        latents = denoise(chain, latents, timesteps, partial(schedule.at, encoded))
        images.append(model.decode(latents).float().cpu())
    return torch.cat(images)


def batches(items: Sequence, size: int) -> Iterator[Any]:
    """Consecutive slices of at most `size`."""
    return (items[i : i + size] for i in range(0, len(items), size))


def grid(prompts: Iterable[str], seeds: Iterable[int]) -> list[tuple[str, int]]:
    """Every prompt with every seed, prompt by prompt."""
    seeds = list(seeds)
    return [(prompt, seed) for prompt in prompts for seed in seeds]
