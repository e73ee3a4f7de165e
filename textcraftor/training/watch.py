"""The over-optimisation watch: held-out figures during training, alarms, which point is saved, the grid of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from textcraftor.evaluation.evaluate import Evaluation, standardised
from textcraftor.evaluation.held_out import HeldOut
from textcraftor.files.writing import replacing
from textcraftor.inference.pictures import cell_width, contact_sheet, to_pil, wrapped
from textcraftor.models.tuning import state_of
from textcraftor.training.processes import processes_of_this_run
from textcraftor.training.state import TrainingState

FIGURES = ("held_out", "gap", "worst", "drift", "embedding_drift")  # 0 before training; limits are of the value itself


@dataclass(frozen=True)
class Alarm:
    """Rings below `low` or above `high`.

    Limits are changes since before training in standard deviations over the untuned model's pictures; of `held_out` and
    `gap`, over the untuned pictures of one prompt; of `worst`, standard errors; of `drift` and `embedding_drift`, the
    value itself.
    """

    low: float | None = None
    high: float | None = None

    def rings(self, change: float) -> bool:
        return (self.low is not None and change < self.low) or (self.high is not None and change > self.high)


class Watch:
    """Looks at prompts that are neither trained on nor in the final evaluation: choosing among points flatters no one.

    The point that is saved is the last one whose `held_out` is within a standard error of the highest: a few prompts do
    not tell closer points apart, and longer training is what was asked for (Breiman et al. 1984, section 3.4.3). Points
    that are worse than the model before training do not count; where all are, that model is what is saved.

    Args:
        look: evaluates the model as it is.
        held_out: compares it with the same prompts and seeds before training.
        alarms: by measure. `held_out` is the mean over held-out scorers of their change, `gap` how much further the
            trained total rose than it, `worst` the z of the held-out scorer that fell most surely.
        stop_on: measures whose alarm ends the run.
        folder: for the grids of pictures.
    """

    def __init__(
        self,
        look: Callable[[], Evaluation],
        held_out: HeldOut,
        alarms: Mapping[str, Alarm],
        stop_on: Sequence[str],
        folder: Path,
    ) -> None:
        self.look, self.held_out, self.before = look, held_out, held_out.before
        self.alarms, self.stop_on, self.folder = dict(alarms), set(stop_on), folder

    def __call__(self, state: TrainingState) -> None:
        """Look; keep the figures, the weights to be saved and the alarms that stop the run in the state."""
        with state.averaged():
            seen = self.look()
            point = self.point(state.step, seen)
            ringing = [name for name in self.alarms if self.alarms[name].rings(self.change(name, point, seen))]
            point["alarms"] = ringing
            points = state.watched["points"]
            points.append(point)
            if point is chosen(points):
                state.watched["best"], state.watched["saved_step"] = state_of(state.learners), state.step
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

    def point(self, step: int, seen: Evaluation) -> dict[str, Any]:
        figure, (worst, scorer) = self.held_out.mean(seen), self.held_out.worst(seen)
        return {
            "step": step,
            **seen.means(),
            "held_out": figure,
            "held_out_error": self.held_out.error(seen),
            "gap": standardised(seen, self.before, "total", self.held_out.spreads["total"]) - figure,
            "worst": worst,
            "worst_scorer": scorer,
        }

    def change(self, name: str, point: Mapping[str, Any], seen: Evaluation) -> float:
        """What an alarm's limits are compared with."""
        if name in FIGURES:
            return point.get(name, 0.0)
        if name not in seen.measures:
            return 0.0
        return standardised(seen, self.before, name, float(np.nanstd(self.before.measures[name])))

    def grid(self, seen: Evaluation, columns: int = 8):
        """The first picture of each prompt, captioned with the prompt, its total and held-out scores."""
        names = ["total", *(name for name in self.held_out.names if name != "total")]
        pictures = [to_pil(image) for image in seen.images[:, 0]]
        room = cell_width(pictures[0])
        captions = [
            "\n".join([*(f"{name} {seen.measures[name][row, 0]:.3f}" for name in names), wrapped(prompt, room)])
            for row, prompt in enumerate(seen.prompts)
        ]
        rows = np.array_split(np.arange(len(pictures)), -(-len(pictures) // columns))
        return contact_sheet([[pictures[i] for i in row] for row in rows], [[captions[i] for i in row] for row in rows])


def worse(point: Mapping[str, Any]) -> bool:
    """Whether a point is worse than the model before training: `held_out` fell by more than its standard error, or a
    held-out scorer fell as surely as the alarm `worst` asks. One prompt says neither."""
    return "worst" in point["alarms"] or point["held_out"] < -point["held_out_error"] < 0


def chosen(points: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The point to be saved; None where the model before training is better than all of them."""
    better = [point for point in points if not worse(point)]
    if not better:
        return None
    highest = max(better, key=lambda one: one["held_out"])
    return next(one for one in reversed(better) if one["held_out"] >= highest["held_out"] - highest["held_out_error"])
