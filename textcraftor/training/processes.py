"""The processes of one launch (`torchrun`, `accelerate launch`), or the only one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from textcraftor.errors import UsageError
from textcraftor.models.placing import Together


@dataclass
class Whereabouts:
    """Where a process is, for the others to know.

    Args:
        phase: in words.
        moves: from phase to phase, so far.
        waits: for the other processes.
    """

    phase: str = "loading"
    moves: int = 0
    waits: bool = False

    def enter(self, phase: str) -> None:
        self.phase, self.moves = phase, self.moves + 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        self.waits, self.moves = True, self.moves + 1
        try:
            yield
        finally:
            self.waits, self.moves = False, self.moves + 1


HERE = Whereabouts()  # of this process


class OtherOutOfMemoryError(UsageError):
    """Another process ran out of memory, so that this one's step counts for nothing either."""

    def __init__(self) -> None:
        super().__init__("another process ran out of memory: see its message")


def processes_of_this_run() -> PartialState:
    """Rank and number of processes, over gloo where there is no GPU."""
    return PartialState(cpu=not torch.cuda.is_available())


def rows_of(batch_size: int, process: int | None = None) -> range:
    """The rows of a batch that a process, by default this one, computes; counts differ by at most one."""
    processes = processes_of_this_run()
    return range(batch_size)[processes.process_index if process is None else process :: processes.num_processes]


@cache
def _host_group() -> Any:
    """A group of all processes that exchanges what lies in the host's memory, without waiting for a GPU."""
    return torch.distributed.new_group(backend="gloo")


def least(values: Sequence[float]) -> list[float]:
    """Each value's minimum over all processes, which must all ask for as many."""
    if processes_of_this_run().num_processes == 1:
        return list(values)
    shared = torch.tensor(values, dtype=torch.float64)
    with HERE.waiting():
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MIN, _host_group())
    return shared.tolist()


def out_of_memory_anywhere(here: bool) -> bool:
    """Whether memory ran out in any process; all must ask, or be in `most`."""
    return least([0.0, -float(here)])[1] < 0


def most(number: int) -> int:
    """The largest of all processes' numbers, once all are here.

    Raises:
        OtherOutOfMemoryError: one came from where its memory ran out.
    """
    low, failed = least([-float(number), 0.0])
    if failed:
        raise OtherOutOfMemoryError()
    return round(-low)


def processes_together() -> Together:
    """How this launch's processes keep step while they share weights."""
    return Together(processes_of_this_run().num_processes, partial(most, 0), most)


def from_main(value: Any) -> Any:
    """The first process's value, in every process."""
    return broadcast_object_list([value])[0]


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
