"""What the measuring scripts share: runs that are made once and gone on with, evaluations, tables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from textcraftor.cli import call
from textcraftor.evaluation.statistics import interval_text, paired_difference
from textcraftor.evaluation.suite import measures_of, read_rows_of
from textcraftor.files.writing import is_finished

SEEDS = (0, 1, 2)  # of training
SCHEME = "experiment=toybox_scheme"  # what the studies train with, whatever the defaults are
BRIEF = ("evaluation.seeds=[0]",)  # of runs that are evaluated otherwise; they watch the prompts that they always watch
PICTURES = (  # of evaluations
    "limit=32",
    "seeds=[0,1]",
    "+reward@rewards.imagereward=imagereward",
    "rewards.imagereward.weight=0",
)
JUDGE = ("judge/taste", "judge/faithfulness", "judge/letters")
Measures = dict[str, np.ndarray]  # each (training seeds, prompts, seeds)


def train(folder: Path, *overrides: str, command: str = "train") -> dict:
    """The summary of a run, made or gone on with where it is not there yet."""
    if not is_finished(folder):
        begun = (folder / "config.yaml").exists()
        program = str(Path(sys.executable).with_name("textcraftor"))
        arguments = [f"resume={folder}"] if begun else [f"run_dir={folder}", *overrides, "training.checkpoint_every=20"]
        subprocess.run([program, command, *arguments], check=True)
    return json.loads((folder / "summary.json").read_text())


@dataclass
class Study:
    """Runs of several seeds and their evaluations on the same prompts, all kept below one folder.

    Args:
        runs: a command and its keys by name.
        pictures: keys of every evaluation.
        shown: the measures of a table.
    """

    folder: Path
    runs: Mapping[str, tuple[str, ...]]
    pictures: Sequence[str]
    shown: Sequence[str]
    prompts: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"": ()})

    def run(self, name: str, seed: int) -> Path:
        """A finished run."""
        place, (command, *keys) = self.folder / "runs" / f"{name}_{seed}", self.runs[name]
        train(place, *keys, f"seed={seed}", command=command)
        return place

    def measures(self, name: str, *keys: str, prompts: str = "") -> Measures:
        """Every measure of an evaluation, made against the common base where it is not there yet."""
        place, base = (self.folder / "evaluations" / prompts / one for one in (name, "base"))
        if not (place / "report.html").exists():
            if name != "base":
                self.measures("base", prompts=prompts)
            against = [] if name == "base" else [f"base={base}"]
            call("evaluate", [*self.pictures, *self.prompts[prompts], *against, *keys, f"run_dir={place}"])
        rows = read_rows_of(place)
        found = measures_of(rows, len({row["seed"] for row in rows}))
        return {key: values[None] for key, values in found.items()}

    def several(self, name: str, keys: Mapping[str, str], *more: str, prompts: str = "") -> Measures:
        """The same of all training seeds.

        Args:
            keys: of the evaluation, and the name of the run whose folder each takes.
        """
        each = []
        for seed in SEEDS:
            given = [f"{key}={self.run(of, seed)}" for key, of in keys.items()]
            each.append(self.measures(f"{name}_{seed}", *given, *more, prompts=prompts))
        return {key: np.concatenate([one[key] for one in each]) for key in each[0]}

    def base(self, prompts: str = "") -> Measures:
        """The untuned model's."""
        return self.measures("base", prompts=prompts)

    def table(self, rows: Mapping[str, Measures], against: Measures, shown: Sequence[str] = ()) -> None:
        """Print each row's paired difference from `against` with its 95 % interval over prompts, whose pictures of all
        seeds are averaged first, and in parentheses the standard deviation over training seeds."""
        names = [name for name in shown or self.shown if name in against]
        print(f"| | {' | '.join(names)} |\n|{' --- |' * (len(names) + 1)}")
        for label, found in rows.items():
            print(f"| {label} | {' | '.join(cell(against[name], found[name]) for name in names)} |")
        print(flush=True)


def cell(before: np.ndarray, after: np.ndarray) -> str:
    """One difference of a table, each side (training seeds, prompts, seeds)."""
    sides = np.broadcast_arrays(before, after)
    told = paired_difference(*(np.concatenate(list(side), 1) for side in sides))
    means = np.nanmean(sides[1] - sides[0], (1, 2))
    spread = f" ({means.std(ddof=1):.3f})" if len(means) > 1 else ""
    return f"{told['mean']:+.3f} {interval_text(told, 3)}{spread}"
