"""What a run says of itself while it runs: seconds by phase, one line a step, the tracker."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator

from textcraftor.files.reading import read_json_lines, shaped
from textcraftor.files.writing import append, json_line, write_text
from textcraftor.training.processes import say


class Stopwatch:
    """Seconds by phase of a run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 2), now


class MetricsFile:
    """One JSON line per step, and the same figures to the tracker.

    Args:
        path: of the JSON lines; those after `step` are cut off, for a resumed run makes them again.
    """

    def __init__(self, path: Path, accelerator: Accelerator, step: int = 0) -> None:
        self.path, self.accelerator = path, accelerator
        self.lines: list[dict[str, float]] = []
        if accelerator.is_main_process:
            rows = {row.get("step"): row for row in (read_json_lines(path) if path.exists() else ())}
            self.lines = [rows[done] for done in range(1, step + 1) if done in rows]
            for line in self.lines:
                shaped(path, line, {str: float})
            if len(self.lines) < step:
                lost = next(done for done in range(1, step + 1) if done not in rows)
                say(f"{path} lacks step {lost}: its figures are lost, the run is not")
            write_text(path, "".join(map(json_line, self.lines)))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.lines.append({"step": step, **figures})
            append(self.path, json_line(self.lines[-1]))
        self.accelerator.log(dict(figures), step=step)
