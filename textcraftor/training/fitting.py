"""The supervised loop that autoencoders, captioners and small scorers share: a loss in, trained weights out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from textcraftor.files.writing import replacing
from textcraftor.training.processes import average_gradients, processes_of_this_run
from textcraftor.training.rates import LearningRates, share_of_rate


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast `fit` learns.

    Args:
        steps: optimiser steps in all, at least 1.
        learning_rate: peak of the schedule.
        schedule: one of `rates.SCHEDULES`.
        warmup: steps of linear warm-up.
        max_grad_norm: gradients are clipped to this norm.
        ema_decay: 0 keeps the last weights, otherwise the returned weights are this moving average.
        save_every: steps between checkpoints.
        dtype: what losses are computed in, by autocast; weights stay as they are.
    """

    steps: int
    learning_rate: float
    schedule: str = "cosine"
    warmup: int = 100
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    save_every: int = 250
    log_every: int = 50
    dtype: torch.dtype = torch.float32


def fit(
    name: str, model: nn.Module, loss_of: Callable[[int], dict[str, Tensor]], settings: FitSettings, folder: Path
) -> nn.Module:
    """Minimise the sum of `loss_of(step)`'s parts with AdamW; the same step number always draws the same numbers.

    Resumes from `<folder>/<name>.checkpoint.pt`, written atomically, where that exists. Under `torchrun` or
    `accelerate launch` each process draws its own share of the batch and gradients are averaged.
    """
    processes = processes_of_this_run()
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99), fused=True
    )
    rates = LearningRates(optimizer, share_of_rate(settings.schedule, settings.warmup, settings.steps))
    ema = new_ema(parameters, settings.ema_decay)
    checkpoint, start = folder / f"{name}.checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if ema:
            ema.load_state_dict(state["ema"])
        start = state["step"]
    if ema:
        ema.to(device)
    began, sums = time.time(), dict[str, float]()
    for step in range(start, settings.steps):
        torch.manual_seed(step * processes.num_processes + processes.process_index)
        with torch.autocast(device.type, settings.dtype, enabled=settings.dtype != torch.float32):
            parts = loss_of(step)
        optimizer.zero_grad()
        sum(parts.values(), torch.zeros((), device=device)).backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        rates.set(step)
        optimizer.step()
        if ema:
            ema.step(parameters)
        for key, value in parts.items():
            sums[key] = sums.get(key, 0.0) + value.item()
        done = step + 1
        if done % settings.log_every == 0 and processes.is_main_process:
            losses = "  ".join(f"{key} {value / settings.log_every:.4f}" for key, value in sums.items())
            pace = (time.time() - began) / (done - start)
            print(f"{name} {done}/{settings.steps}  {losses}  {pace:.3f} s/step", flush=True)
            sums.clear()
        if (done % settings.save_every == 0 or done == settings.steps) and processes.is_main_process:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": done,
            } | ({"ema": ema.state_dict()} if ema else {})
            with replacing(checkpoint) as partial:
                torch.save(state, partial)
    if ema:
        ema.copy_to(parameters)
    return model


def new_ema(parameters: Sequence[nn.Parameter], decay: float) -> EMAModel | None:
    """A moving average of weights that begins quickly; none with a decay of 0."""
    return EMAModel(parameters, decay=decay, use_ema_warmup=True, power=0.75) if decay else None
