"""What a run says of itself while it runs: seconds by phase, one line a step, the tracker."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from textcraftor.files.reading import open_picture, read_json_lines
from textcraftor.files.writing import append, json_line, write_text
from textcraftor.training.processes import say

NO_FIGURES = ("step", "alarms", "worst_scorer")  # of a look
MOST_NAMES = 500  # of figures in a line


class Stopwatch:
    """Seconds by phase of a run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 2), now


def is_line(row: Mapping[str, Any]) -> bool:
    """Whether a row is one that `MetricsFile` wrote: figures by plain names, and how long the step took."""
    named = len(row) <= MOST_NAMES and all(re.fullmatch(r"[\w/.+-]+", name) for name in row)
    return named and "seconds" in row and all(isinstance(one, int | float | None) for one in row.values())


class MetricsFile:
    """One JSON line per step, and the same figures to the tracker.

    Args:
        path: of the JSON lines; those after `step` are removed; a resumed run writes them again.
    """

    def __init__(self, path: Path, accelerator: Accelerator, step: int = 0) -> None:
        self.path, self.accelerator = path, accelerator
        self.lines: list[dict[str, float]] = []
        if accelerator.is_main_process:
            stored = read_json_lines(path) if path.exists() else ()
            rows = {row["step"]: row for row in stored if isinstance(row.get("step"), int) and is_line(row)}
            self.lines = [rows[done] for done in range(1, step + 1) if done in rows]
            if len(self.lines) < step:
                lost = next(done for done in range(1, step + 1) if done not in rows)
                say(f"{path} lacks step {lost}: its figures are lost, the run is not")
            write_text(path, "".join(map(json_line, self.lines)))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.lines.append({"step": step, **figures})
            append(self.path, json_line(self.lines[-1]))
        self.accelerator.log(dict(figures), step=step)

    def look(self, point: Mapping[str, Any], alarms: Iterable[str], grid: Path | None = None) -> None:
        """A look at the watched prompts, to the tracker alone: every figure, 1 for each alarm that rings, the pictures.

        Args:
            point: as `Watch.point`, with the alarms that ring.
            alarms: all that there are.
        """
        figures = {f"watch/{name}": value for name, value in point.items() if name not in NO_FIGURES}
        figures |= {f"alarm/{name}": float(name in point["alarms"]) for name in alarms}
        self.accelerator.log(figures, step=point["step"])
        if grid is not None:
            self.picture(point["step"], "watch/pictures", grid)

    def outcome(self, step: int, before: Mapping[str, float], after: Mapping[str, float], sheet: Path) -> None:
        """The evaluated prompts before and after, to the tracker alone."""
        sides = {"before": before, "after": after}
        figures = {f"{side}/{name}": value for side, means in sides.items() for name, value in means.items()}
        self.accelerator.log(figures, step=step)
        self.picture(step, "before and after", sheet)

    def picture(self, step: int, name: str, file: Path) -> None:
        """A picture, to whichever tracker takes pictures."""
        if not (self.accelerator.is_main_process and self.accelerator.trackers):
            return
        with open_picture(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))[None]
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: pixels}, step=step, **layout)
