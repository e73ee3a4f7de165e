"""`textcraftor evaluate`: a mix of encoders against the untuned model, over a suite of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf

from textcraftor.captioning.upsample import check_upsampler, upsampler_of
from textcraftor.config.making import made
from textcraftor.errors import UsageError
from textcraftor.evaluation.evaluate import best_of, compare_measures, means, measure
from textcraftor.evaluation.judging import folders
from textcraftor.evaluation.judging.judged import table_text
from textcraftor.evaluation.judging.opening import check_judge
from textcraftor.evaluation.report import write_evaluation
from textcraftor.evaluation.statistics import interval_text
from textcraftor.evaluation.suite import Store, Suite, measures_of, read_rows_of
from textcraftor.files.reading import read_yaml, shaped
from textcraftor.files.writing import check_unfinished, is_finished, locked, write_json, write_text
from textcraftor.inference.generate import Sampling
from textcraftor.inference.mix import Mix
from textcraftor.inference.opening import open_model
from textcraftor.models.loading import device_of, dtype_of
from textcraftor.rewards.total import check_rewards, load_rewards

SHOWN = 12  # prompts in a report that lost most, and as many that gained most
MAY_DIFFER = ("shard", "batch_size", "device", "run_dir", "name", "answers")  # between what resumes and what began


def shard_of(config: DictConfig) -> tuple[int, int]:
    """This process's number and how many share the pictures: shards, and the processes of a launch within each."""
    processes = PartialState(cpu=device_of(config.device) == "cpu")
    if config.shard is None:
        return processes.process_index, processes.num_processes
    number, slash, of = str(config.shard).partition("/")
    if not (slash and number.isdigit() and of.isdigit() and int(number) < int(of)):
        raise UsageError(f"shard={config.shard} must be k/n with k from 0 to n - 1, as shard=0/4")
    return int(number) * processes.num_processes + processes.process_index, int(of) * processes.num_processes


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot work before any model is loaded and before anything is written."""
    suite, mix = Suite.of(config), Mix.of(config)
    Sampling(**config.sampling)
    check_upsampler(config)
    check_rewards(config)
    for key in ("dtype", "scorer_dtype"):
        dtype_of(config, key)
    shard_of(config)
    check_judge(config, folder, suite.prompts, compares=changes(config, mix))
    if config.base is not None:
        if not changes(config, mix):
            raise UsageError(
                "base= is compared with what tuned, mix, denoiser.path or upsample change: give one of them"
            )
        same_jobs(read_rows_of(Path(config.base).expanduser()), suite, config.base)
    check_unfinished(folder, "an evaluation")
    if (folder / "config.yaml").exists():
        stored = read_yaml(folder / "config.yaml")
        ours: Any = OmegaConf.to_container(config, resolve=True)
        different = [key for key in ours if key not in MAY_DIFFER and ours[key] != stored.get(key)]
        if different:
            raise UsageError(f"run_dir={folder} holds the beginning of another evaluation, by {', '.join(different)}")


def changes(config: DictConfig, mix: Mix) -> bool:
    """Whether this is anything but the untuned model with the prompts as they are."""
    return bool(mix.tuned or mix.denoiser or config.upsample)


def same_jobs(rows: list[dict], suite: Suite, where: str) -> None:
    theirs = [(row["prompt"], row["seed"]) for row in rows]
    if theirs != [(suite.prompts[index], seed) for index, seed in suite.jobs]:
        raise UsageError(
            f"base={where} holds other prompts or seeds than this evaluation: choose the same suite, limit and seeds"
        )


def run(config: DictConfig, folder: Path) -> str:
    """Write `pictures/`, `rows.parquet`, `summary.json` and `report.html`, and the same of the base in `base/`.

    What is interrupted, or shared among shards, goes on where the same command is given again.
    """
    check(config, folder)
    processes = PartialState()
    suite, mix = Suite.of(config, print if processes.is_main_process else None), Mix.of(config)
    base = Path(config.base).expanduser() if config.base is not None else folder / "base"
    made_here = [(Store(folder, suite), mix, config.upsample)]
    if config.base is None and changes(config, mix):
        made_here.insert(0, (Store(base, suite), Mix(), False))
    states = [fill(config, folder, *one) for one in made_here]
    judge = folders.Judging(config) if config.judge is not None else None
    if judge:  # once every picture is made, so that no two large models share the memory
        states += [judge.ask(store, *shard_of(config)) for store, _, _ in made_here]
    complete = all(states)
    processes.wait_for_everyone()  # all have counted the rows before their files go
    if complete and processes.is_main_process:
        for store, _, _ in made_here:
            close_rows(store, judge)
            if store.folder == base:
                store.close()
    processes.wait_for_everyone()
    if not complete:
        return f"{folder} is not complete yet: other shards are at work, or to be started"
    if processes.is_main_process:
        finish(config, folder, base if changes(config, mix) else None, judge)
    processes.wait_for_everyone()
    return f"wrote {folder}\n{(folder / 'table.md').read_text()}"


def fill(config: DictConfig, folder: Path, store: Store, mix: Mix, upsample: bool = False) -> bool:
    """Make this process's share of the pictures that are not there yet; returns whether all are there."""
    processes = PartialState()
    if is_finished(store.folder):
        return True
    number, of = shard_of(config)
    with locked(store.folder, str(number)):
        make(config, folder, store, mix, upsample, number, of)
    processes.wait_for_everyone()
    return len(store.rows()) == len(store.suite.jobs)


def close_rows(store: Store, judge: folders.Judging | None) -> None:
    """Write the rows of a store whose pictures are all there and judged as one file."""
    if not is_finished(store.folder):
        store.finish(judge.figures(store) if judge else {})


def make(config: DictConfig, folder: Path, store: Store, mix: Mix, upsample: bool, number: int, of: int) -> None:
    """Every `of`-th picture from `number` on that is not there yet."""
    mine = store.waiting(store.suite.jobs[number::of])
    if mine:
        opened = open_model(config, [mix], store.suite.prompts)
        model, sampling, (schedule,) = opened.model, opened.sampling, opened.schedules
        rewards = load_rewards(config.rewards).to(model.device)
        rewards.scorers.to(dtype_of(config, "scorer_dtype")[0])
        rewards.check(store.suite.prompts)
        judge, upsampler = made(config.model.judge), upsampler_of(config) if upsample else None
        if PartialState().is_main_process:  # whatever can be refused has been
            write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))

        def measured(batch: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
            jobs = [(store.suite.prompts[index], seed) for index, seed in batch]
            return measure(model, schedule, sampling, rewards, judge, jobs, config.batch_size, upsampler)

        store.fill(mine, number, config.batch_size, measured)


def finish(config: DictConfig, folder: Path, base: Path | None, judge: folders.Judging | None = None) -> None:
    """Compare with the base, and write the summary, the table and the report."""
    suite, seeds = Suite.of(config), len(config.seeds)
    rows = read_rows_of(folder)
    measures = measures_of(rows, seeds)
    summary: dict[str, Any] = {
        "prompts": len(suite.prompts),
        "seeds": list(suite.seeds),
        "tuned": dict(config.tuned),
        "scorers": [name for name, part in config.rewards.items() if part is not None],
        "trained_on": sorted(trained_on(config)),
        "means": means(measures),
    }
    if judge:
        summary["judge"] = judge.summary(Store(folder, suite), Store(base, suite) if base is not None else None)
    worst: list[dict] = []
    best: list[dict] = []
    if base is not None:
        theirs = read_rows_of(base)
        before = measures_of(theirs, seeds)
        summary |= {
            "base": means(before),
            "best_base": best_of(before),
            "difference": compare_measures(before, measures),
        }
        summary |= by_category(suite, before, measures)
        order = np.argsort((measures["total"] - before["total"]).mean(1))
        stores = {"before": (Store(base, suite), theirs), "after": (Store(folder, suite), rows)}

        def shown(index: int) -> dict:
            place = slice(index * seeds, (index + 1) * seeds)
            pictures = {
                side: [store.picture(row) for row in side_rows[place]] for side, (store, side_rows) in stores.items()
            }
            return {"prompt": suite.prompts[index], **pictures}

        count = min(SHOWN, len(order) // 2)
        worst, best = [shown(i) for i in order[:count]], [shown(i) for i in order[::-1][:count]]
    write_json(folder / "summary.json", summary)
    write_text(folder / "table.md", table(summary))
    yaml = OmegaConf.to_yaml(config, resolve=True)
    write_evaluation(folder / "report.html", f"TextCraftor: {folder.name}", summary, yaml, worst, best)
    Store(folder, suite).close()


def by_category(
    suite: Suite, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> dict[str, dict[str, dict]]:
    """The comparison and the means of each category, if there are several."""
    names = list(dict.fromkeys(suite.categories))
    entries: dict[str, dict[str, dict]] = {"categories": {}, "category_base": {}, "category_means": {}}
    for name in names if len(names) > 1 else []:
        chosen = np.array([category == name for category in suite.categories])
        sides = [
            {key: values[chosen] for key, values in side.items() if not np.isnan(values[chosen]).all()}
            for side in (before, after)
        ]
        entries["categories"][name] = compare_measures(*sides)
        entries["category_base"][name], entries["category_means"][name] = map(means, sides)
    return entries


def trained_on(config: DictConfig) -> set[str]:
    """The scorers that the tuned runs were trained on; all others are held out."""
    scorers: set[str] = set()
    for run_folder in config.tuned.values():
        file = Path(run_folder).expanduser() / "config.yaml"
        if file.exists():
            stored = shaped(file, read_yaml(file).get("rewards", {}), {str: object}, "rewards")
            scorers |= {name for name, part in stored.items() if isinstance(part, dict) and part.get("weight")}
    return scorers


def table(summary: Mapping) -> str:
    """Every measure, and where there is a base the paired difference from it over its n prompts, as Markdown; beside it
    what the base gains by choosing the best picture of each prompt."""
    judged = f"\n{table_text(summary['judge'])}" if "judge" in summary else ""
    marks = dict.fromkeys(summary["trained_on"], " (trained on)")
    if "base" not in summary:
        lines = [f"| {name} | {value:.4f} |" for name, value in summary["means"].items()]
        return "\n".join(["| measure | mean |", "| --- | --- |", *lines]) + f"\n{judged}"
    heads = ["measure", "base", f"best of {len(summary['seeds'])} of it", "here", "difference"]
    heads += ["95 % interval over prompts", "n", "win rate"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name, change in summary["difference"].items():
        best = f"{summary['best_base'][name]:.4f}" if name in summary["best_base"] else ""
        sides = f"{summary['base'][name]:.4f} | {best} | {summary['means'][name]:.4f} | {change['mean']:+.4f}"
        interval = f"{interval_text(change, 4)} | {change['n']} | {change['win_rate']:.0%}"
        lines.append(f"| {name}{marks.get(name, '')} | {sides} | {interval} |")
    return "\n".join(lines) + f"\n{judged}"
