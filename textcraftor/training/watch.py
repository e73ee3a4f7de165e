"""The over-optimisation watch: held-out figures during training, alarms, which point is saved, the grid of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from textcraftor.evaluation.evaluate import Evaluation, held_out, held_out_error, standardised
from textcraftor.files.writing import replacing
from textcraftor.inference.pictures import cell_width, contact_sheet, to_pil, wrapped
from textcraftor.models.tuning import state_of
from textcraftor.training.processes import processes_of_this_run
from textcraftor.training.state import TrainingState


@dataclass(frozen=True)
class Alarm:
    """Rings below `low` or above `high`.

    Limits are changes since before training in standard deviations over the untuned model's pictures; of `held_out` and
    `gap`, over the untuned pictures of one prompt; of `drift`, which is 0 before training, the value itself.
    """

    low: float | None = None
    high: float | None = None

    def rings(self, change: float) -> bool:
        return (self.low is not None and change < self.low) or (self.high is not None and change > self.high)


class Watch:
    """Looks at prompts that are neither trained on nor in the final evaluation: choosing among points flatters no one.

    The point that is saved is the last one whose `held_out` is within a standard error of the highest: a few prompts do
    not tell closer points apart, and longer training is what was asked for (Breiman et al. 1984, section 3.4.3).

    Args:
        look: evaluates the model as it is.
        before: the same prompts and seeds before training.
        weights: of the mix; a scorer with weight 0 is held out.
        spreads: of the untuned pictures of one prompt, by measure: the unit of `held_out` and `gap`.
        alarms: by measure; `held_out` and `gap` (how much further the trained total rose than it) are measures too.
        stop_on: measures whose alarm ends the run.
        folder: for the grids of pictures.
    """

    def __init__(
        self,
        look: Callable[[], Evaluation],
        before: Evaluation,
        weights: Mapping[str, float],
        spreads: Mapping[str, float],
        alarms: Mapping[str, Alarm],
        stop_on: Sequence[str],
        folder: Path,
    ) -> None:
        self.look, self.before, self.weights, self.spreads = look, before, dict(weights), dict(spreads)
        self.alarms, self.stop_on, self.folder = dict(alarms), set(stop_on), folder

    def __call__(self, state: TrainingState) -> None:
        """Look; keep the figures, the weights to be saved and the alarms that stop the run in the state."""
        with state.averaged():
            seen = self.look()
            point = self.point(state.step, seen)
            points = state.watched["points"]
            highest = max([*points, point], key=lambda one: one["held_out"])
            if point["held_out"] >= highest["held_out"] - highest["held_out_error"]:
                state.watched["best"] = state_of(state.learners)
        ringing = [name for name in self.alarms if self.alarms[name].rings(self.change(name, point, seen))]
        points.append(point | {"alarms": ringing})
        self.show(state.step, seen)
        state.watched["stopped_by"] = [name for name in ringing if name in self.stop_on]

    def show(self, step: int, seen: Evaluation) -> None:
        """Write the grid of pictures of a look."""
        if processes_of_this_run().is_main_process:
            with replacing(self.file(step)) as partial:
                self.grid(seen).save(partial)

    @property
    def first(self) -> dict[str, Any]:
        """The point before training, at which no alarm rings."""
        return self.point(0, self.before) | {"alarms": []}

    def file(self, step: int) -> Path:
        """Where the pictures of a look are."""
        return self.folder / f"step_{step:06d}.png"

    def point(self, step: int, seen: Evaluation) -> dict[str, float]:
        figure = held_out(seen, self.before, self.weights, self.spreads)
        gap = standardised(seen, self.before, "total", self.spreads["total"]) - figure
        error = held_out_error(seen, self.before, self.weights, self.spreads)
        return {"step": step, **seen.means(), "held_out": figure, "held_out_error": error, "gap": gap}

    def change(self, name: str, point: Mapping[str, float], seen: Evaluation) -> float:
        if name in ("held_out", "gap", "drift"):
            return point[name]
        if name not in seen.measures:
            return 0.0
        return standardised(seen, self.before, name, float(np.nanstd(self.before.measures[name])))

    def grid(self, seen: Evaluation, columns: int = 8):
        """The first picture of each prompt, captioned with the prompt, its total and held-out scores."""
        names = ["total", *(name for name, weight in self.weights.items() if weight == 0)]
        pictures = [to_pil(image) for image in seen.images[:, 0]]
        room = cell_width(pictures[0])
        captions = [
            "\n".join([*(f"{name} {seen.measures[name][row, 0]:.3f}" for name in names), wrapped(prompt, room)])
            for row, prompt in enumerate(seen.prompts)
        ]
        rows = np.array_split(np.arange(len(pictures)), -(-len(pictures) // columns))
        return contact_sheet([[pictures[i] for i in row] for row in rows], [[captions[i] for i in row] for row in rows])
