"""The loop that reward tuning and caption tuning share: a gradient in, trained weights out, and nothing lost."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from textcraftor.errors import is_out_of_memory
from textcraftor.models.model import Model
from textcraftor.training.interrupt import Interrupt, InterruptedRunError
from textcraftor.training.memory import Costs
from textcraftor.training.phases import Phases
from textcraftor.training.processes import (
    OtherOutOfMemoryError,
    average,
    out_of_memory_anywhere,
    processes_of_this_run,
    rows_of,
)
from textcraftor.training.state import TrainingState


@dataclass(frozen=True)
class Pace:
    """How long the model learns, and how often it is looked at.

    Args:
        steps: optimiser steps.
        batch_size: prompts or pictures per step, all processes together.
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


class Objective(Protocol):
    """What a step descends on; none of it changes while training but what `observe` keeps."""

    @property
    def model(self) -> Model: ...

    @property
    def names(self) -> Sequence[str]:
        """Of the figures that follow the loss in what `gradient` returns."""

    def gradient(
        self, state: TrainingState, rows: Sequence[int], batch_size: int, phases: Phases
    ) -> tuple[Tensor, dict[str, int]]:
        """Add the gradient of these rows of the step's batch.

        Returns:
            (1 + names + more,): this process's part of the batch's mean loss, of the named figures, and of whatever
            else `observe` wants; and counts of what was done.
        """

    def observe(self, figures: Tensor) -> None:
        """Called after each whole step with what follows the loss, averaged over all processes."""

    def headline(self, figures: Mapping[str, float]) -> str:
        """What the progress bar shows of a step's figures."""

    def replay(self, step: int, batch_size: int) -> dict[str, Any]:
        """What a step was computed from, as JSON."""

    def costs(self) -> Costs:
        """What one row of a batch costs in memory."""


class NotFiniteError(FloatingPointError):
    """A loss, score or gradient is not finite; `record` holds what a replay needs."""

    def __init__(self, state: TrainingState, figures: dict[str, float], replay: dict[str, Any]) -> None:
        cause = next(name for name, value in figures.items() if not math.isfinite(value))
        if cause == "grad_norm":
            cause = f"the gradient of {state.broken_tensor()}"
        super().__init__(f"step {state.step}: {cause} is not finite")
        written = {name: str(value) for name, value in figures.items()}
        self.record = {"step": state.step, "cause": cause, "figures": written, **replay}


def gradient_together(
    objective: Objective, state: TrainingState, batch_size: int, phases: Phases
) -> tuple[Tensor, dict[str, int]] | None:
    """The gradient of this process's rows; None where memory ran out in any process, and all have planned anew.

    Raises:
        RuntimeError: memory ran out with a single row at a time, or for the second time.
    """
    result: tuple[Tensor, dict[str, int]] | None = None
    failure: Exception | None = None
    try:
        result = objective.gradient(state, rows_of(batch_size), batch_size, phases)
        if out_of_memory_anywhere(False):
            failure = OtherOutOfMemoryError()
    except OtherOutOfMemoryError as error:
        failure = error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        out_of_memory_anywhere(True)
        failure = error
    if failure is None:
        return result
    if state.plan.micro_batch == 1 or state.plan.replanned:
        raise failure
    failure.__traceback__ = None  # it holds everything that was computed
    state.plan = state.plan.halved()
    objective.model.begin_anew()
    return None


def tune(
    objective: Objective,
    state: TrainingState,
    pace: Pace,
    log: Callable[[int, dict[str, float]], None],
    watch: Callable[[TrainingState], None],
    checkpoint: Callable[[TrainingState], None],
    interrupt: Interrupt,
) -> None:
    """Train what `state` holds, from the step that it has reached, until all steps are done or an alarm stops it.

    Args:
        log: called with each step's figures.
        watch: called every `pace.watch_every` steps and after the last.
        checkpoint: called every `pace.checkpoint_every` steps, after the last, and before an interruption.

    Raises:
        NotFiniteError: a loss, score or gradient is not; what learns keeps its last good weights.
        InterruptedRunError: by a signal, once the checkpoint is written.
    """
    processes, phases = processes_of_this_run(), Phases(objective.model.device)
    objective.model.checkpoint_blocks(denoiser=state.plan.blocks, decoder=not state.plan.decoder)
    progress = tqdm(
        range(pace.steps),
        desc="tuning",
        unit="step",
        initial=state.step,
        disable=not processes.is_main_process,
    )
    while state.step < pace.steps and not state.watched["stopped_by"]:
        began, phases.step = time.perf_counter(), state.step
        state.learn(state.step / pace.steps)
        gradient = gradient_together(objective, state, pace.batch_size, phases)
        if gradient is None:
            smaller = f"out of memory: accumulating gradients of {state.plan.micro_batch} at a time from here on"
            if processes.is_main_process:
                progress.write(smaller, file=sys.stderr)
            continue
        sums, calls = gradient
        norm = state.update(pace.max_grad_norm)

        # One read of the device per step, once the backward pass is queued.
        sums = average(torch.cat([sums, sums.new_tensor([interrupt.received])]))
        loss, *values, interrupted, grad_norm = torch.cat([sums, norm[None].double()]).tolist()
        figures = dict(zip(objective.names, values[: len(objective.names)], strict=True)) | {
            "loss": loss,
            "grad_norm": grad_norm,
        }
        if all(map(math.isfinite, figures.values())):
            objective.observe(sums[1:-1])
        elif state.skip(figures) > pace.skip_broken:
            raise NotFiniteError(state, figures, objective.replay(state.step, pace.batch_size))
        state.step += 1

        figures |= {f"learning_rate/{one.part}": lr for one, lr in zip(state.learners, state.rates, strict=True)}
        figures |= {**calls, "seconds": time.perf_counter() - began, **phases.read()}
        log(state.step, figures)
        progress.set_postfix_str(objective.headline(figures))
        progress.update()
        last = state.step == pace.steps
        if state.step % pace.watch_every == 0 or last:
            watch(state)
        last = last or bool(state.watched["stopped_by"])
        if state.step % pace.checkpoint_every == 0 or last or interrupted:
            checkpoint(state)
        if interrupted and not last:
            raise InterruptedRunError(interrupt.received, state.step)
