"""What each round gained on held-out prompts, and the result of all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from textcraftor.enhancement.opening import STATE, Session
from textcraftor.enhancement.pairs import PAIRS, read_kept
from textcraftor.enhancement.stages import Round, close, looked_at, mine
from textcraftor.evaluation.evaluate import compare_measures, means
from textcraftor.evaluation.held_out import held_out_names, seed_spreads
from textcraftor.evaluation.report import render, thumbnail
from textcraftor.evaluation.statistics import interval_text, paired_difference
from textcraftor.evaluation.suite import Store, Suite, measures_of
from textcraftor.files.reading import read_json_lines
from textcraftor.files.writing import finish, is_finished, write_json, write_text
from textcraftor.inference.pictures import png_url
from textcraftor.models.run_record import FILE
from textcraftor.training.processes import processes_of_this_run

HELD_OUT = "held_out"
SHOWN = 12  # held-out prompts in the report


def held_out_store(folder: Path, suite: Suite) -> Store:
    """The pictures of prompts that no round learns from, as a round makes them."""
    return Store(folder / HELD_OUT, suite)


def look(round_: Round, suite: Suite, session: Session) -> None:
    """Make and measure the held-out pictures."""
    store, config = held_out_store(round_.folder, suite), round_.config
    if is_finished(store.folder):
        return
    part, size = processes_of_this_run().process_index, config.evaluation.batch_size
    store.fill(store.waiting(mine(suite.jobs)), part, size, partial(looked_at, suite, config, session))
    close(store.folder)


def figures_of(round_: Round, suite: Suite) -> dict[str, np.ndarray]:
    """Every measure of a round's held-out pictures, (prompts, seeds)."""
    rows = held_out_store(round_.folder, suite).rows()
    return measures_of([rows[job] for job in suite.jobs], len(suite.seeds))


def gain(config: DictConfig, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, float]:
    """How much scorers with weight 0 rose, or the total where there are none: the mean over them of the change of their
    score in units of its spread within a prompt, with an interval over prompts."""
    weights = {name: float(part.weight) for name, part in config.rewards.items() if part is not None}
    names = [name for name in held_out_names(weights) if name in before and name in after]
    units = seed_spreads([before])
    sides = [np.stack([side[name] / max(units[name], 1e-6) for name in names]).mean(0) for side in (before, after)]
    return paired_difference(*sides)


def conclude(config: DictConfig, folder: Path, rounds: Sequence[Round], suite: Suite) -> str:
    """Write the results of every round, and copy the last one that gained as the result.

    Args:
        rounds: the untuned model's, then the completed ones.
    """
    if not processes_of_this_run().is_main_process:
        return ""
    figures = [figures_of(round_, suite) for round_ in rounds]
    gains = [gain(config, *pair) for pair in pairwise(figures)]
    best = next((number for number, one in enumerate(gains) if not one["mean"] > 0), len(gains))
    summary: dict[str, Any] = {
        "prompts": len(suite.prompts),
        "seeds": list(suite.seeds),
        "method": config.method,
        "result": best,
        "rounds": [
            {"number": number, **counts_of(round_), "gain": gains[number - 1]}
            | {"means": means(figures[number]), "difference": compare_measures(figures[0], figures[number])}
            for number, round_ in enumerate(rounds)
            if number
        ],
        "before": means(figures[0]),
        "after": means(figures[best or -1]),
        "difference": compare_measures(figures[0], figures[best or -1]),
        "steps": config.training.steps,
        "batch_size": config.training.batch_size,
    }
    if best:
        run = rounds[best].folder / "run"
        for path in run.iterdir():
            if path.is_dir():
                shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        shutil.copy(run / STATE, folder / STATE)
        shutil.copy(run / FILE, folder / FILE)
    write_json(folder / "summary.json", summary)
    write_text(folder / "table.md", table(summary))
    page(config, folder, rounds, best, suite, summary)
    finish(folder, "enhance")
    result = (
        f"the result is round {best}'s" if best else "no round gained anything on held-out prompts: there is no result"
    )
    return f"wrote {folder}; {result}\n{table(summary)}"


def counts_of(round_: Round) -> dict[str, int]:
    """How many pictures were asked about, advised on, made again and learned from."""
    answers = round_.advice().values()
    return {
        "pictures": len(round_.suite.jobs),
        "faults": sum(bool(row["fault"]) for row in answers),
        "advised": sum(bool(row["regions"]) for row in answers),
        "pairs": sum(1 for _ in read_json_lines(round_.folder / PAIRS)),
        "kept": len(read_kept(round_.folder)),
    }


def table(summary: dict[str, Any]) -> str:
    """Each measure's mean before, and its difference from that after each round, as Markdown."""
    rounds = summary["rounds"]
    heads = ["measure", "before", *(f"round {one['number']}: difference, 95 % interval over prompts" for one in rounds)]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name, value in summary["before"].items():
        changes = [one["difference"].get(name) for one in rounds]
        cells = [f"{change['mean']:+.4f} {interval_text(change, 4)}" if change else "" for change in changes]
        lines.append(f"| {name} | {value:.4f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page(
    config: DictConfig, folder: Path, rounds: Sequence[Round], best: int, suite: Suite, summary: dict[str, Any]
) -> None:
    """The report: what each round did, and held-out pictures before and after."""
    sides = {"before": rounds[0], "after": rounds[best] if best else rounds[-1]}
    stores = {side: held_out_store(round_.folder, suite) for side, round_ in sides.items()}
    written = {side: store.rows() for side, store in stores.items()}
    rows = [
        {"prompt": prompt}
        | {
            side: [png_url(thumbnail(store.picture(written[side][index, seed]))) for seed in suite.seeds]
            for side, store in stores.items()
        }
        for index, prompt in enumerate(suite.prompts[:SHOWN])
    ]
    html = render(
        "enhancement.html.j2",
        Path(__file__).parent,
        title=f"TextCraftor: {folder.name}",
        summary=summary,
        rows=rows,
        config=OmegaConf.to_yaml(config, resolve=True),
    )
    write_text(folder / "report.html", html)
