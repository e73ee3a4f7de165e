"""`textcraftor compare runs/a runs/b`: one table and one picture of many runs."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from omegaconf import DictConfig

from textcraftor.errors import UsageError
from textcraftor.evaluation.statistics import LEAST_SEEDS, interval_text
from textcraftor.files.reading import read_json, shaped
from textcraftor.files.writing import check_unfinished, finish, locked, replacing, write_text

# What of a run's summary is shown.
SUMMARY = {
    "held_out": float,
    "seconds": {"tuning": float},
    "peak_memory_gb": float,
    "steps": int,
    "difference": {str: {"mean": float, "low": float, "high": float, "n?": int}},  # runs of old have no n
}
ONE_RUN = (
    "In brackets 95 % intervals over n prompts, each of one run: another training seed moves the changes further, and "
    f"a claim about a method needs {LEAST_SEEDS} seeds."
)


def check(config: DictConfig, folder: Path) -> None:
    """Refuse folders that hold no finished run, and measures that a run has not."""
    places = [Path(run).expanduser().resolve() for run in config.runs]
    if twice := next((run for run, place in zip(config.runs, places, strict=True) if places.count(place) > 1), None):
        raise UsageError(f"runs: {twice} is named twice: give each once")
    if len(config.runs) < 2:
        raise UsageError(f"runs={list(config.runs)}: give at least two folders, textcraftor compare runs/a runs/b")
    for summary in read_runs(config.runs).values():
        for axis in ("x", "y"):
            figure(summary, config[axis])
    check_unfinished(folder, "a comparison")


def read_runs(runs: list[str]) -> dict[str, dict]:
    """The summaries of runs by the shortest ends of their paths that tell them apart."""
    files = {Path(run): Path(run).expanduser() / "summary.json" for run in runs}
    for run, file in files.items():
        if not file.exists():
            raise UsageError(f"{run} holds no summary.json: give the folder of a finished run")
    summaries = {run: shaped(file, read_json(file), SUMMARY) for run, file in files.items()}
    names = [path.parts for path in summaries]
    length = next(
        n for n in range(1, max(map(len, names)) + 1) if len({parts[-n:] for parts in names}) == len(set(names))
    )
    return {" ".join("/".join(path.parts[-length:]).split()): summary for path, summary in summaries.items()}


def figure(summary: dict, name: str) -> float:
    """One figure of a run: a measure's change from before to after, or what the run cost."""
    costs = {
        "held_out": summary["held_out"],
        "seconds": summary["seconds"]["tuning"],
        "gb": summary["peak_memory_gb"],
        "steps": summary["steps"],
    }
    if name not in costs and name not in summary["difference"]:
        raise UsageError(f"no measure {name} in a run; there are {', '.join([*costs, *summary['difference']])}")
    return costs[name] if name in costs else summary["difference"][name]["mean"]


def table(summaries: dict[str, dict]) -> str:
    """Every measure's change that all runs have, with its 95 % interval over its n prompts, as Markdown."""
    first = next(iter(summaries.values()))
    measures = [name for name in first["difference"] if all(name in one["difference"] for one in summaries.values())]
    costs = ["held_out", "steps", "seconds", "gb"]
    lines = [f"| run | {' | '.join([*costs, *measures])} |", f"| --- |{' --- |' * (len(costs) + len(measures))}"]
    for run, summary in summaries.items():
        cells = [f"{figure(summary, name):.4g}" for name in costs]
        for name in measures:
            change = summary["difference"][name]
            count = f", n {change['n']}" if "n" in change else ""
            cells.append(f"{change['mean']:+.3f} {interval_text(change, 3)}{count}")
        lines.append(f"| {run} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", ONE_RUN])


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Which of the points (n, 2) no other one beats in both coordinates."""
    at_least, above = points[None] >= points[:, None], points[None] > points[:, None]
    return ~np.any(np.all(at_least, 2) & np.any(above, 2), 1)


def draw(summaries: dict[str, dict], x: str, y: str, file: Path) -> None:
    """A picture of two figures, higher better in both, with the front that no run is beyond."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = np.array([[figure(summary, axis) for axis in (x, y)] for summary in summaries.values()])
    front = pareto_front(points)
    canvas, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    axes.scatter(*points[~front].T, color="#999", label="another run is better in both")
    line = points[front][np.argsort(points[front][:, 0])]
    axes.plot(*line.T, "o-", color="#1f5fbf", label="Pareto front")
    for name, point in zip(summaries, points, strict=True):
        axes.annotate(name, point, xytext=(4, 4), textcoords="offset points", fontsize=8, parse_math=False)
    axes.set_xlabel(f"{x}, change", parse_math=False)
    axes.set_ylabel(f"{y}, change", parse_math=False)
    axes.legend(fontsize=8)
    canvas.savefig(file, dpi=120)
    pyplot.close(canvas)


def run(config: DictConfig, folder: Path) -> str:
    """Write `table.md` and `pareto.png`; returns the table."""
    check(config, folder)
    summaries = read_runs(config.runs)
    text = table(summaries)
    with locked(folder):
        write_text(folder / "table.md", text + "\n")
        with replacing(folder / "pareto.png") as file:
            draw(summaries, config.x, config.y, file)
        finish(folder, "compare")
    return f"wrote {folder / 'table.md'} and {folder / 'pareto.png'}\n\n{text}"
