"""What a run says of itself while it runs: seconds by phase, one line a step, the tracker."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator


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
            written = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
            whole = [json.loads(line) for line in written if line.endswith("}\n")]
            self.lines = [line for line in whole if line["step"] <= step]
            path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.lines.append({"step": step, **figures})
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.lines[-1]) + "\n")
        self.accelerator.log(dict(figures), step=step)
