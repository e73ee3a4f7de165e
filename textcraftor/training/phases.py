"""Seconds and peak memory of the phases of a training step."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import psutil
import torch

from textcraftor.training.processes import HERE

GB = 1e9


class Phases:
    """Seconds and peak memory of the phases of one step; on a GPU by events, which wait for nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.step: int | None = None  # that is being taken
        self._spans: dict[str, list[tuple]] = {}
        self._peaks: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        HERE.enter(f"step {self.step + 1}, {name}" if self.step is not None else name)
        reset_peak(self.device)
        began = self._mark()
        yield
        self._spans.setdefault(name, []).append((began, self._mark()))
        self._peaks[name] = max(self._peaks.get(name, 0.0), peak_bytes(self.device))

    def _mark(self):
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> dict[str, float]:
        """The figures since the last reading, by `seconds/<phase>` and `gb/<phase>`; call when the device is idle."""

        def between(began, ended) -> float:
            return began.elapsed_time(ended) / 1e3 if self.device.type == "cuda" else ended - began

        figures = {f"seconds/{name}": sum(between(*span) for span in spans) for name, spans in self._spans.items()}
        figures |= {f"gb/{name}": peak / GB for name, peak in self._peaks.items()}
        self._spans.clear()
        self._peaks.clear()
        return figures


def peak_gb(lines: Iterable[Mapping[str, float]]) -> float:
    """The most memory of all phases of the steps that these figures are of; 0 without any."""
    return max((line[key] for line in lines for key in line if key.startswith("gb/")), default=0.0)


def resident_bytes(device: torch.device) -> float:
    """What this process holds now: on a GPU its tensors, else all its memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def reset_peak(device: torch.device) -> None:
    """Start the high-water mark anew, where the system allows it (GPUs, Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> float:
    """The high-water mark since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmHWM" in lines:
            return float(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
