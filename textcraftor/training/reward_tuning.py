"""TextCraftor (arXiv 2403.18978): tune the text encoder by the gradient of what rewards see in its pictures.

prompts -> text encoder -> sampling chain -> decoder -> images -> rewards, and the gradient all the way back.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from textcraftor.training.interrupt import Interrupt, InterruptedRunError
from textcraftor.training.memory import out_of_memory
from textcraftor.training.method import Method
from textcraftor.training.phases import Phases
from textcraftor.training.processes import average, processes_of_this_run
from textcraftor.training.state import TrainingState


@dataclass(frozen=True)
class RewardTuning:
    """How long the model learns, and how often it is looked at.

    Args:
        steps: optimiser steps.
        batch_size: prompts per step, all processes together.
        max_grad_norm: the gradient is clipped to this norm.
        watch_every, checkpoint_every: steps.
        skip_broken: how many updates may be left out because something was not finite before the run stops.
    """

    steps: int
    batch_size: int
    max_grad_norm: float = 1.0
    watch_every: int = 50
    checkpoint_every: int = 50
    skip_broken: int = 0


class NotFiniteError(FloatingPointError):
    """A loss, score or gradient is not finite; `record` holds what a replay needs."""

    def __init__(
        self, state: TrainingState, figures: dict[str, float], prompts: Sequence[str], seeds: Sequence[int]
    ) -> None:
        cause = next(name for name, value in figures.items() if not math.isfinite(value))
        if cause == "grad_norm":
            cause = f"the gradient of {state.broken_tensor()}"
        super().__init__(f"step {state.step}: {cause} is not finite")
        self.record = {
            "step": state.step,
            "cause": cause,
            "figures": {name: str(value) for name, value in figures.items()},
            "prompts": list(prompts),
            "seeds": list(seeds),
        }


def gradient_of(
    method: Method, state: TrainingState, rows: Sequence[int], settings: RewardTuning, phases: Phases
) -> tuple[Tensor, dict[str, int]]:
    """Add the gradient of minus the mean reward over these rows of the step's batch.

    Returns:
        (1 + 2 * rewards,), the loss and the rewards' moments, this process's part of the batch's mean; and how often
        the denoiser was called, and how often with a gradient.
    """
    prompts, seeds = method.draw(state.step, settings.batch_size)
    sums = torch.zeros(1 + 2 * len(method.mix.rewards), dtype=torch.float64, device=method.model.device)
    for part in state.plan.micro_batches(rows):
        said = [prompts[row] for row in part]
        numbers = [seeds[row] for row in part]
        images, chain = method.pictures(said, numbers, state.step, state.plan.kept_steps, phases)
        share = len(part) * processes_of_this_run().num_processes / settings.batch_size
        with phases("reward"):
            scores = method.mix(images, said * (len(images) // len(said)))
            if chain.log_prob is None:
                loss = -share * method.mix.objective(scores).mean()
            else:
                loss = -share * (method.mix.advantage(scores) * chain.log_prob).mean()
            moments = method.mix.moments(scores)
            finite = torch.where(moments.isfinite().all(), 1.0, math.nan)  # a broken score must not teach anything
        with phases("backward"):
            state.scaler.scale(loss * finite).backward()
        sums += torch.cat([loss.detach()[None].double(), share * moments])
    return sums, {"unet_calls": chain.calls, "gradient_steps": chain.gradient_steps}


def tune_by_reward(
    method: Method,
    state: TrainingState,
    settings: RewardTuning,
    log: Callable[[int, dict[str, float]], None],
    watch: Callable[[TrainingState], None],
    checkpoint: Callable[[TrainingState], None],
    interrupt: Interrupt,
) -> None:
    """Train what `state` holds, from the step that it has reached, until all steps are done or an alarm stops it.

    Args:
        log: called with each step's figures.
        watch: called every `settings.watch_every` steps and after the last.
        checkpoint: called every `settings.checkpoint_every` steps, after the last, and before an interruption.

    Raises:
        NotFiniteError: a loss, score or gradient is not; what learns keeps its last good weights.
        InterruptedRunError: by a signal, once the checkpoint is written.
    """
    processes, phases = processes_of_this_run(), Phases(method.model.device)
    rows = range(settings.batch_size)[processes.process_index :: processes.num_processes]
    method.model.checkpoint_blocks(unet=state.plan.blocks, decoder=not state.plan.decoder)
    rewards = [f"reward/{name}" for name in method.mix.rewards]
    progress = tqdm(
        range(settings.steps),
        desc="tuning",
        unit="step",
        initial=state.step,
        disable=not processes.is_main_process,
    )
    while state.step < settings.steps and not state.watched["stopped_by"]:
        began = time.perf_counter()
        state.learn(state.step / settings.steps)
        try:
            sums, calls = gradient_of(method, state, rows, settings, phases)
        except RuntimeError as error:
            if not out_of_memory(error) or state.plan.micro_batch == 1 or state.plan.replanned:
                raise
            state.plan = state.plan.halved()
            said = f"out of memory: accumulating gradients of {state.plan.micro_batch} prompts from here on"
            progress.write(said, file=sys.stderr)
            continue
        norm = state.update(settings.max_grad_norm)

        # One read of the device per step, once the backward pass is queued.
        sums = average(torch.cat([sums, sums.new_tensor([interrupt.received])]))
        loss, *values, interrupted, grad_norm = torch.cat([sums, norm[None].double()]).tolist()
        figures = dict(zip(rewards, values[: len(rewards)], strict=True)) | {"loss": loss, "grad_norm": grad_norm}
        if all(map(math.isfinite, figures.values())):
            method.mix.observe(sums[1:-1])
        elif state.skip(figures) > settings.skip_broken:
            raise NotFiniteError(state, figures, *method.draw(state.step, settings.batch_size))
        state.step += 1

        figures |= {f"learning_rate/{one.part}": lr for one, lr in zip(state.learners, state.rates, strict=True)}
        figures |= {**calls, "seconds": time.perf_counter() - began, **phases.read()}
        log(state.step, figures)
        progress.set_postfix(total=f"{-figures['loss']:.3f}")
        progress.update()
        last = state.step == settings.steps
        if state.step % settings.watch_every == 0 or last:
            watch(state)
        last = last or bool(state.watched["stopped_by"])
        if state.step % settings.checkpoint_every == 0 or last or interrupted:
            checkpoint(state)
        if interrupted and not last:
            raise InterruptedRunError(interrupt.received, state.step)
