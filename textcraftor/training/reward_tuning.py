"""TextCraftor (arXiv 2403.18978): tune the text encoder by the gradient of what rewards see in its pictures.

prompts -> text encoder -> sampling chain -> decoder -> images -> rewards, and the gradient all the way back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import nn
from tqdm import tqdm

from textcraftor.data.prompts import PromptDraw
from textcraftor.inference.generate import Sampling
from textcraftor.models.stable_diffusion import StableDiffusion
from textcraftor.models.tuning import add_trainable_text_encoder
from textcraftor.rewards.mix import RewardMix
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.sampling.gradients import Rollout


@dataclass(frozen=True)
class RewardTuning:
    """How long and how fast the encoder learns.

    Args:
        steps: optimiser steps.
        batch_size: prompts per step.
        lr_schedule: any name that `diffusers.optimization.get_scheduler` knows.
        warmup: steps over which the learning rate rises from 0.
        max_grad_norm: the gradient is clipped to this norm.
        recompute: trade time for memory: keep each step's input only and recompute it in the backward pass.
        watch_every: steps between looks at the held-out prompts.
    """

    steps: int
    batch_size: int
    lr_schedule: str = "constant_with_warmup"
    warmup: int = 0
    max_grad_norm: float = 1.0
    recompute: bool = False
    watch_every: int = 50


def tune_by_reward(
    model: StableDiffusion,
    mix: RewardMix,
    rollout: Rollout,
    schedule: ConditioningSchedule,
    sampling: Sampling,
    draw: PromptDraw,
    new_optimizer: Callable[..., torch.optim.Optimizer],
    settings: RewardTuning,
    accelerator: Accelerator,
    log: Callable[[int, dict[str, float]], None],
    watch: Callable[[int], None],
) -> nn.Module:
    """Train `model.text_encoders["tuned"]`; returns it.

    Args:
        rollout: the gradient policy.
        schedule: which encoder conditions which step, here and wherever the encoder is used later.
        log: called with each step's figures.
        watch: called every `settings.watch_every` steps and after the last.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; the encoder keeps its last good weights.
    """
    chain = sampling.chain(model, settings.recompute)
    encoder = add_trainable_text_encoder(model, "tuned")
    optimizer = new_optimizer(encoder.parameters())
    lr_schedule = get_scheduler(
        settings.lr_schedule, optimizer, num_warmup_steps=settings.warmup, num_training_steps=settings.steps
    )
    encoder, optimizer, lr_schedule = accelerator.prepare(encoder, optimizer, lr_schedule)
    model.text_encoders["tuned"] = encoder
    progress = tqdm(range(settings.steps), desc="tuning", unit="step", disable=not accelerator.is_main_process)
    for step in progress:
        began = time.perf_counter()
        prompts, seeds = draw(step, settings.batch_size)
        negative_prompts = [sampling.negative_prompt] * len(prompts)
        encoded = {name: model.encode(prompts, negative_prompts, name) for name in schedule.encoders}

        latents = model.noise(seeds, sampling.height, sampling.width)
        latents = rollout(chain, latents, partial(schedule.at, encoded))
        scores = mix(model.decode(latents), prompts)
        loss = -mix.objective(scores).mean()

        optimizer.zero_grad()
        accelerator.backward(loss)
        grad_norm = accelerator.clip_grad_norm_(encoder.parameters(), settings.max_grad_norm)

        # One read of the device per step, once the backward pass is queued.
        names = ["loss", "grad_norm", *(f"reward/{name}" for name in scores)]
        values = torch.stack([loss.detach(), grad_norm, *(score.detach().mean() for score in scores.values())])
        figures = dict(zip(names, values.tolist(), strict=True))
        broken = [name for name, value in figures.items() if not math.isfinite(value)]
        if broken:
            raise FloatingPointError(
                f"step {step}: {broken[0]} is {figures[broken[0]]}; prompts {prompts}, seeds {seeds}"
            )
        optimizer.step()
        lr_schedule.step()

        figures |= {"learning_rate": lr_schedule.get_last_lr()[0], "seconds": time.perf_counter() - began}
        log(step + 1, figures)
        progress.set_postfix(total=f"{-figures['loss']:.3f}")
        if (step + 1) % settings.watch_every == 0 or step + 1 == settings.steps:
            watch(step + 1)
    return accelerator.unwrap_model(encoder)
