"""What the ledger keeps of a checked claim: verdict, effects, arms, cost, and what it was made by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from textcraftor.claims.jobs import Job
from textcraftor.claims.plan import Plan
from textcraftor.claims.verdict import Figures, judged, overall
from textcraftor.config.claims import Check
from textcraftor.evaluation.ledger import made_by, new_table
from textcraftor.evaluation.suite import PICTURES as OF_EVALUATION
from textcraftor.evaluation.suite import measures_of, read_rows_of
from textcraftor.files.pictures import to_rgb
from textcraftor.files.reading import open_picture, read_json, read_json_lines
from textcraftor.files.writing import replacing
from textcraftor.inference.pictures import contact_sheet

COLUMNS = ("comparison", "measure", "claimed", ("effect", "+.3f"), "seeds", ("shown from", ".3f"), "verdict")
PASSES_OF_GRADIENT = 2  # a backward pass through the denoiser costs about two forward passes


def entry_of(
    plan: Plan, arms: Mapping[str, Sequence[Job]], rates: Mapping[str, float], written: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """The ledger's entry of a claim, with a table of its comparisons.

    Args:
        arms: finished evaluations, one for each training seed.
        rates: the learning rates that were chosen, by run.
        written: the claim as in its file, with no folder of this machine in its keys.
        command: checks the claim again.
    """
    claim = plan.claim
    figures = {name: figures_of(jobs, plan.is_trained(claim.arms[name])) for name, jobs in arms.items()}
    judgements = {name: judged(check, figures) for name, check in claim.checks.items()}
    rows = [row_of(name, check, judgements[name]) for name, check in claim.checks.items()]
    return {
        **made_by(command),
        **{key: written[key] for key in ("paper", "section", "sentence", "caveat")},
        "verdict": overall(one["verdict"] for one in judgements.values()),
        "training seeds": plan.seeds,
        "rates": dict(rates),
        "runs": written["runs"],
        "arms": {name: {"keys": written["arms"][name]["keys"], **cost_of(jobs)} for name, jobs in arms.items()},
        "checks": {name: asdict(claim.checks[name]) | judgements[name] for name in claim.checks},
        **new_table(COLUMNS, rows),
    }


def row_of(name: str, check: Check, judgement: Mapping[str, Any]) -> list[Any]:
    """A comparison's row in the table."""
    margin = f"{check.margin:g}"
    claimed = f"from -{margin} to {margin}" if check.holds == "within" else f"{check.holds} {margin}"
    effect = {key: judgement[key] for key in ("mean", "low", "high", "n")}
    if judgement["sd"] is not None:
        effect["sd"] = judgement["sd"]
    shown = effect if judgement["mean"] is not None else "none"
    seeds = str(judgement["seeds"] or "")
    return [name, check.measure, claimed, shown, seeds, judgement["detectable"], judgement["verdict"]]


def figures_of(jobs: Sequence[Job], trained: bool) -> Figures:
    """The measures of an arm's evaluations."""
    each = []
    for job in jobs:
        rows = read_rows_of(job.folder)
        each.append(measures_of(rows, len({row["seed"] for row in rows})))
    return Figures.joined(each, trained)


def cost_of(jobs: Sequence[Job]) -> dict[str, float]:
    """What an arm's training took on average over training seeds: passes of pictures through the denoiser, of which a
    gradient step counts three, and seconds."""
    runs = [list(trained_by(job)) for job in jobs]
    passes = [sum(map(passes_of, several)) for several in runs]
    seconds = [sum(read_json(run / "summary.json")["seconds"]["tuning"] for run in several) for several in runs]
    return {"passes": float(np.mean(passes)), "seconds": float(np.mean(seconds))}


def trained_by(job: Job) -> Iterator[Path]:
    """The folders of the trainings that an evaluation needs."""
    for folder in dict.fromkeys(one.folder for one in job.with_needs()):
        if (folder / "metrics.jsonl").exists():
            yield folder


def passes_of(run: Path) -> float:
    """The passes of a training."""
    lines, batch = read_json_lines(run / "metrics.jsonl"), read_json(run / "summary.json")["batch_size"]
    return batch * sum(line["denoiser_calls"] + PASSES_OF_GRADIENT * line["gradient_steps"] for line in lines)


def draw(file: Path, arms: Mapping[str, Sequence[Job]], prompts: int) -> None:
    """A sheet of pictures: one prompt a row, one arm a column, of the first training seed and the first noise."""
    columns = {name: first_pictures(jobs[0], prompts) for name, jobs in arms.items()}
    count = min(map(len, columns.values()))
    rows = [[_opened(files[index]) for files in columns.values()] for index in range(count)]
    captions = [list(columns) for _ in range(count)]
    with replacing(file) as partial:
        contact_sheet(rows, captions, min_side=96).save(partial, "PNG")


def first_pictures(job: Job, prompts: int) -> list[Path]:
    """The first picture of each of the first prompts of an evaluation."""
    files: dict[str, Path] = {}
    for row in read_rows_of(job.folder):
        files.setdefault(row["prompt"], job.folder / OF_EVALUATION / Path(row["picture"]).name)
    return list(files.values())[:prompts]


def _opened(file: Path) -> Any:
    with open_picture(file) as picture:
        return to_rgb(picture)
