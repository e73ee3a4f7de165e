"""The processes of one launch (`torchrun`, `accelerate launch`), or the only one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from accelerate import PartialState
from torch import Tensor, nn


def processes_of_this_run() -> PartialState:
    """Rank and number of processes, over gloo where there is no GPU."""
    return PartialState(cpu=not torch.cuda.is_available())


def average(values: Tensor) -> Tensor:
    """The mean over processes, in place."""
    count = PartialState().num_processes
    if count > 1:
        torch.distributed.all_reduce(values)
        values /= count
    return values


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """The mean over processes, in one exchange; nothing to do for a single one."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if PartialState().num_processes == 1 or not gradients:
        return
    flat = average(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def show(line: str) -> None:
    """One line of a command's results, from the first process alone."""
    if processes_of_this_run().is_main_process:
        print(line, flush=True)


def say(line: str) -> None:
    """One line about how the work goes, from the first process alone."""
    if processes_of_this_run().is_main_process:
        print(f"textcraftor: {line}", file=sys.stderr, flush=True)
