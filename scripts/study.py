"""What the measuring scripts share: runs that are made once and gone on with, evaluations, tables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from results import show

from textcraftor.cli import call
from textcraftor.evaluation.statistics import LEAST_SEEDS, crossed_difference, paired_difference
from textcraftor.evaluation.suite import measures_of, read_rows_of
from textcraftor.files.writing import is_finished

SEEDS = tuple(range(LEAST_SEEDS))  # of training
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
Pairs = Mapping[str, tuple[Measures, Measures]]  # before and after, by a row's name
NOTE = (
    "In brackets 95 % intervals over training seeds and n prompts, crossed; in parentheses the standard deviation over "
    f"training seeds. Fewer than {LEAST_SEEDS} of them make no claim about a method, and have no such interval; with 1 "
    "or none it is over prompts alone."
)


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
        file: of docs/results, in which tables are kept if asked for.
    """

    folder: Path
    runs: Mapping[str, tuple[str, ...]]
    pictures: Sequence[str]
    shown: Sequence[str]
    file: str
    store: bool
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

    def table(self, title: str, rows: Pairs, shown: Sequence[str] = ()) -> None:
        """Show each row's differences, see `show_differences`."""
        show_differences(self.file, title, rows, shown or self.shown, self.store)


def against(base: Measures, rows: Mapping[str, Measures]) -> dict[str, tuple[Measures, Measures]]:
    """Rows that are all compared with one base."""
    return {name: (base, found) for name, found in rows.items()}


def show_differences(file: str, title: str, rows: Pairs, shown: Sequence[str], store: bool) -> None:
    """Show each row's paired differences, with what their intervals are over."""
    names = [name for name in shown if all(name in before for before, _ in rows.values())]
    cells = []
    for label, (before, after) in rows.items():
        seeds = max(len(side[name]) for side in (before, after) for name in names)
        cells.append([label, seeds, *(cell(before[name], after[name]) for name in names)])
    show(file, title, ["", "training seeds", *((name, "+.3f") for name in names)], cells, store)
    print(f"{NOTE}\n", flush=True)


def change_of(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Crossed over training seeds and prompts; of one training seed, over prompts alone.

    Args:
        before, after: (training seeds, prompts, seeds); where one side has 1 training seed, all of the other share it.
    """
    several = max(len(before), len(after)) > 1
    return crossed_difference(before, after) if several else paired_difference(before[0], after[0])


def cell(before: np.ndarray, after: np.ndarray) -> dict[str, float | None]:
    """One difference of a table, see `NOTE`."""
    change = change_of(before, after)
    means = np.nanmean(after.mean(2) - before.mean(2), 1)
    low, high = (None if np.isnan(change[end]) else change[end] for end in ("low", "high"))
    spread = {"sd": float(means.std(ddof=1))} if len(means) > 1 else {}
    return {"mean": change["mean"], "low": low, "high": high, **spread, "n": change["n"]}


def measures_of_runs(summaries: Sequence[Mapping]) -> tuple[Measures, Measures]:
    """Differences of runs of several training seeds on the prompts that they were evaluated with: none, and theirs."""
    names = summaries[0]["difference_by_prompt"]
    after = {
        name: np.array([one["difference_by_prompt"][name] for one in summaries], dtype=float)[..., None]
        for name in names
    }
    return {name: np.zeros_like(values[:1]) for name, values in after.items()}, after
