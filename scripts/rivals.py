"""Steps as others have published them, re-created from their descriptions: what the benchmark compares with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from textcraftor.models.base import Branch
from textcraftor.training.job import Job


def alignprop(job: Job, step: int) -> tuple[int, int]:
    """AlignProp (Prabhudesai et al. 2023): the graph over the whole chain is built, each call of the UNet computed
    again in the backward pass, and the latents are detached before a step drawn from N(.84, .1) of the chain.

    Returns:
        Calls of the UNet, and those of them with a gradient.
    """
    rng, steps = np.random.default_rng(step), job.sampling.steps
    first = min(max(round(steps * rng.normal(0.84, 0.1)), 0), steps - 1)
    embeds = _embeds(job, step, "tuned", once=True)
    _learn(job, step, _chain(job, step, embeds, embeds, first, build=True))
    return steps, steps - first


def textcraftor(job: Job, step: int) -> tuple[int, int]:
    """TextCraftor's published behaviour: 5 steps with a gradient, each call of the UNet computed again; UNet, decoder
    and scorers never frozen, so that their weights get gradients that nothing uses; the empty prompt encoded as often
    as there are prompts.

    Returns:
        Calls of the UNet, and those of them with a gradient.
    """
    never_frozen = [job.model.denoiser, job.model.vae, job.rewards]
    for part in never_frozen:
        part.requires_grad_(True)
    with torch.no_grad():
        early = _embeds(job, step, "original", once=False)
    late = _embeds(job, step, "tuned", once=False)
    _learn(job, step, _chain(job, step, early, late, job.sampling.steps - 5, build=False))
    for part in never_frozen:
        part.requires_grad_(False)
        for parameter in part.parameters():
            parameter.grad = None
    return job.sampling.steps, 5


def _embeds(job: Job, step: int, encoder: str, once: bool) -> Branch:
    """Of 2 batch rows: the empty prompt, encoded once or as often as there are prompts; then the prompts."""
    model, (prompts, _), size = job.model, job.objective.draw(step, job.pace.batch_size), job.sampling.size
    count = len(prompts)
    if once:
        said = model.encode(prompts, [None] * count, encoder, size)
        return Branch.cat([said.negative, said.prompt])
    said = model.family.encode(model.readers[encoder], [*[""] * count, *prompts], size)
    negative = said.map(lambda tensor: tensor[:count])
    absent = model.family.no_prompt(model.pipeline, negative)
    return Branch.cat([absent or negative, said.map(lambda tensor: tensor[count:])])


def _chain(job: Job, step: int, early: Branch, late: Branch, first: int, build: bool) -> Tensor:
    """The final latents, with a gradient from step `first` on; `build` makes a graph of the steps before it too."""
    model, sampling, (_, seeds) = job.model, job.sampling, job.objective.draw(step, job.pace.batch_size)
    sampler = model.sampler("ddim", sampling.steps, sampling.size)
    latents = model.noise(seeds, sampling.height, sampling.width)
    for index, t in enumerate(sampler.timesteps):
        embeds = early if index < first else late
        if index == first:
            latents = latents.detach()
        with torch.set_grad_enabled(build or index >= first):
            output = checkpoint(model.predict, torch.cat([latents] * 2), t, embeds, use_reentrant=False)
            negative, positive = output.chunk(2)
            output = negative + sampling.guidance_scale * (positive - negative)
            latents = sampler.step(output, t, latents)
    return latents


def _learn(job: Job, step: int, latents: Tensor) -> None:
    """Decode, score, and add the gradient of minus the mean reward."""
    prompts, _ = job.objective.draw(step, job.pace.batch_size)
    scores = job.rewards(job.model.decode(latents), prompts)
    (-job.rewards.objective(scores).mean()).backward()
