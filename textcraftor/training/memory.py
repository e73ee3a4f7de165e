"""What fits into memory: one step is measured, then as many activations are kept as the budget allows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import psutil
import torch
from torch import nn

from textcraftor.errors import UsageError
from textcraftor.inference.generate import batches
from textcraftor.training.phases import GB, resident_bytes
from textcraftor.training.processes import processes_of_this_run

SHARE = {"cuda": 0.92, "cpu": 0.8}  # of what is free that `auto` takes


@dataclass(frozen=True)
class Plan:
    """What is kept for the backward pass, and how many prompts are computed at a time.

    Args:
        kept_steps: so many steps with a gradient keep their activations; the others compute them again.
        blocks: ... block by block.
        decoder: the decoder keeps its activations; else it computes them again, picture by picture.
        micro_batch: prompts at a time; a smaller one than the batch accumulates gradients.
        gradient_steps: how many steps carry a gradient.
        predicted, budget: bytes.
        offloaded: frozen text encoders that are on the device only while they work, with their bytes.
        on_disk: those of them that are read from disk each time.
        replanned: memory ran out all the same, once.
    """

    kept_steps: int
    blocks: bool
    decoder: bool
    micro_batch: int
    gradient_steps: int
    predicted: float
    budget: float
    replanned: bool = False
    offloaded: Mapping[str, float] = field(default_factory=dict)
    on_disk: tuple[str, ...] = ()

    def __str__(self) -> str:
        steps = f"{min(self.kept_steps, self.gradient_steps)} of {self.gradient_steps} gradient steps"
        unit = "block by block" if self.blocks else "step by step"
        again = "" if self.kept_steps >= self.gradient_steps else f", the others again {unit}"
        decoder = "decoder kept" if self.decoder else "decoder again picture by picture"
        sizes = f"predicted peak {self.predicted / GB:.2f} GB of {self.budget / GB:.2f} GB"
        disk = dict.fromkeys(self.on_disk, ", again from disk")
        away = ", ".join(f"{part} ({size / GB:.2f} GB{disk.get(part, '')})" for part, size in self.offloaded.items())
        places = f"; on the device only while at work: {away}" if away else ""
        return f"memory: keeps {steps}{again}; {decoder}; {self.micro_batch} prompts at a time{places}; {sizes}"

    def halved(self) -> Plan:
        """The same with half as many prompts at a time, after memory ran out all the same."""
        return replace(self, micro_batch=-(-self.micro_batch // 2), replanned=True)

    def micro_batches(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        return batches(rows, self.micro_batch)


class Costs(Protocol):
    """What a row of a batch costs in memory, and the ways to spend less."""

    @property
    def gradient_steps(self) -> int: ...

    @property
    def choices(self) -> Sequence[tuple[int, bool, bool]]:
        """(kept_steps, blocks, decoder) of `Plan`, the fastest first."""

    def peak(self, kept: int, blocks: bool, decoder: bool, rows: int) -> float:
        """The most bytes that exist at once beside what is always there, for so many rows at a time."""


def bytes_of(parts: Iterable[nn.Module]) -> float:
    """Of all weights of some networks, shared ones counted once."""
    weights = {id(one): one for part in parts for one in (*part.parameters(), *part.buffers())}
    return float(sum(one.nbytes for one in weights.values()))


def plan_memory(
    budget: str | float,
    device: torch.device,
    costs: Costs,
    batch: int,
    updating: float,
    resident: float | None = None,
    movable: Mapping[str, float] | None = None,
    host: float = math.inf,
) -> Plan:
    """Choose what to keep of a batch: all, else the more the better.

    Args:
        budget: GB in all, what is in use now included; `auto` takes most of what is free.
        costs: of one row of the batch.
        batch: rows of a step, of this process alone.
        updating: bytes of gradients and optimiser that come to what is in use now.
        resident: bytes in use now; measured unless given.
        movable: bytes of parts that may leave the device while they do not work.
        host: bytes for them elsewhere in memory; those that find no room there are read from disk each time.

    Raises:
        UsageError: not even one row fits.
    """
    limit = available_bytes(device) if budget == "auto" else float(budget) * GB
    fixed = (resident_bytes(device) if resident is None else resident) + updating
    size, largest_first = batch, sorted((movable or {}).items(), key=lambda pair: -pair[1])
    while True:
        for kept, blocks, decoder in costs.choices:
            for count in range(len(largest_first) + 1):
                away = dict(largest_first[:count])
                stays = fixed - sum(away.values())
                need = stays + max(costs.peak(kept, blocks, decoder, size), max(away.values(), default=0.0))
                if need <= limit:
                    disk = tuple(
                        part for part, sum_ in zip(away, accumulate(away.values()), strict=True) if sum_ > host
                    )
                    return Plan(
                        kept, blocks, decoder, size, costs.gradient_steps, need, limit, offloaded=away, on_disk=disk
                    )
        if size == 1:
            raise UsageError(
                f"memory.budget={limit / GB:.2f} GB, but one prompt at a time needs {need / GB:.2f} GB: "
                "raise it, tune with LoRA, choose fewer scorers or smaller pictures"
            )
        size = -(-size // 2)


def host_bytes(device: torch.device) -> float:
    """What parts that leave a device may use in all: most of what is free here; nothing where memory is the device."""
    return 0.0 if device.type == "cpu" else SHARE["cpu"] * _free_memory()


def available_bytes(device: torch.device) -> float:
    """What `auto` may use in all: what this process holds, and most of what is free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = float(torch.cuda.mem_get_info(device)[0])
    else:
        free = _free_memory()
    return resident_bytes(device) + SHARE[device.type] * free


def _free_memory() -> float:
    """Bytes of this machine's memory that are free, each process's share."""
    return min(psutil.virtual_memory().available, _container_bytes()) / processes_of_this_run().num_processes


def _container_bytes() -> float:
    """What a container's limit leaves, where there is one (cgroup v2)."""
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    with contextlib.suppress(OSError, ValueError):
        return float(limit.read_text()) - float(used.read_text())
    return math.inf
