"""What fits into memory: one step is measured, then as many activations are kept as the budget allows."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import psutil
import torch
from torch import nn

from textcraftor.errors import UsageError
from textcraftor.inference.generate import batches
from textcraftor.models.placing import TOLD, Part, Place
from textcraftor.training.phases import GB, resident_bytes
from textcraftor.training.places import check_places, differentiable, heavy_places, light_places, peak_of_parts
from textcraftor.training.processes import least, processes_of_this_run

SHARE = {"cuda": 0.92, "cpu": 0.8}  # of what is free that `auto` takes


@dataclass(frozen=True)
class Plan:
    """What is kept for the backward pass, how many prompts are computed at a time, and where frozen parts are.

    Args:
        kept_steps: so many steps with a gradient keep their activations; the others compute them again.
        blocks: ... block by block.
        decoder: the decoder keeps its activations; else it computes them again, picture by picture.
        micro_batch: prompts at a time; a smaller one than the batch accumulates gradients.
        gradient_steps: how many steps carry a gradient.
        predicted, budget: bytes.
        places: of frozen parts, all that may be elsewhere than on the device.
        sizes: their bytes.
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
    places: Mapping[str, Place] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        steps = f"{min(self.kept_steps, self.gradient_steps)} of {self.gradient_steps} gradient steps"
        if self.blocks and self.kept_steps >= self.gradient_steps:
            steps += ", but for the insides of blocks"
        unit = "block by block" if self.blocks else "step by step"
        again = "" if self.kept_steps >= self.gradient_steps else f", the others again {unit}"
        decoder = "decoder kept" if self.decoder else "decoder again picture by picture"
        peak = f"predicted peak {self.predicted / GB:.2f} GB of {self.budget / GB:.2f} GB"
        away = "".join(f"; {line}" for part, line in self.told_places().items() if self.places[part] != "resident")
        return f"memory: keeps {steps}{again}; {decoder}; {self.micro_batch} prompts at a time{away}; {peak}"

    def told_places(self) -> dict[str, str]:
        """Where each frozen part is, in a line."""
        return {part: f"{part} ({self.sizes[part] / GB:.2f} GB) {TOLD[place]}" for part, place in self.places.items()}

    def halved(self) -> Plan:
        """The same with half as many prompts at a time, after memory ran out all the same."""
        return replace(self, micro_batch=-(-self.micro_batch // 2), replanned=True)

    def micro_batches(self, rows: Sequence[int], most: int) -> list[tuple[Sequence[int], int]]:
        """Rows in parts of about one size, and how many of each part count.

        Args:
            most: rows of the fullest process. All processes get as many parts: one that has too few rows computes its
                last one again, which counts nothing.
        """
        return as_many(list(batches(rows, self.micro_batch)), -(-most // self.micro_batch))


class Costs(Protocol):
    """What a row of a batch costs in memory, and the ways to spend less."""

    @property
    def gradient_steps(self) -> int: ...

    @property
    def choices(self) -> Sequence[tuple[int, bool, bool]]:
        """(kept_steps, blocks, decoder) of `Plan`, the fastest first."""

    def peak(self, kept: int, blocks: bool, decoder: bool, rows: int, together: bool = True) -> float:
        """The most bytes that exist at once beside what is always there, for so many rows at a time.

        Args:
            together: all scorers' activations; else one scorer's after another's.
        """


def as_many(parts: Sequence[Sequence[int]], count: int) -> list[tuple[Sequence[int], int]]:
    """So many parts of a batch's rows, and how many rows of each count: a part beyond those that are there is the last
    row once more, and counts nothing."""
    return [(part, len(part)) for part in parts] + [(parts[-1][-1:], 0)] * (count - len(parts))


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
    parts: Sequence[Part] = (),
    host: float = math.inf,
    chosen: Mapping[str, Place] | None = None,
) -> Plan:
    """Choose what to keep of a batch: all, else the more the better. All processes get the plan of the tightest.

    Args:
        budget: GB in all, what is in use now included; `auto` takes most of what is free.
        costs: of one row of the batch.
        batch: rows of a step, of the fullest process.
        updating: bytes of gradients and optimiser that come to what is in use now.
        resident: bytes in use now; measured unless given.
        parts: that may be elsewhere than on the device.
        host: bytes for them elsewhere in memory; text encoders that find no room there are read from disk each time.
        chosen: places of parts that are not the plan's to choose.

    Raises:
        UsageError: not even one row fits, or a place is chosen that a part cannot have.
    """
    processes, chosen = processes_of_this_run().num_processes, dict(chosen or {})
    check_places(chosen, parts, processes)
    limit = available_bytes(device) if budget == "auto" else float(budget) * GB
    fixed = (resident_bytes(device) if resident is None else resident) + updating
    limit, host, minus_fixed = least([limit, host, -fixed])
    sizes, need = {part.name: part.nbytes for part in parts}, math.inf
    for moved in heavy_places(parts, chosen, processes):
        for size in halvings(batch):
            for kept, blocks, decoder in costs.choices:
                if not differentiable(moved, blocks, decoder):
                    continue
                for places in light_places(parts, moved, host, chosen):
                    together = places.get("scorers") != "while_it_works"
                    away = peak_of_parts(parts, places, costs.peak(kept, blocks, decoder, size, together), processes)
                    peak = -least([minus_fixed - away])[0]  # what did not fit alone costs infinitely much
                    need = min(need, peak)
                    if peak <= limit:
                        about = (kept, blocks, decoder, size, costs.gradient_steps, peak, limit)
                        return Plan(*about, places=places, sizes=sizes)
    raise UsageError(
        f"memory.budget={limit / GB:.2f} GB, but one prompt at a time needs {need / GB:.2f} GB: "
        "raise it, tune with LoRA, choose fewer scorers or smaller pictures"
    )


def halvings(size: int) -> Iterator[int]:
    """A size, its half and so on, to one."""
    yield size
    if size > 1:
        yield from halvings(-(-size // 2))


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
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes_of_this_run().num_processes))
    return min(psutil.virtual_memory().available, _container_bytes()) / here


def _container_bytes() -> float:
    """What a container's limit leaves, where there is one (cgroup v2)."""
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    with contextlib.suppress(OSError, ValueError):
        return float(limit.read_text()) - float(used.read_text())
    return math.inf
