"""One table of every gradient policy and of everything that may learn: `python scripts/compare_methods.py`.

Each method gets its learning rate from the same small sweep (seed 0, upwards until the held-out figure falls), then
five seeds at that rate. A second table has each method's difference from the first one. Finished runs are skipped and
unfinished ones resumed, so the script can be interrupted at any time. On a few cores two of them side by side on
different --methods, with one thread each (OMP_NUM_THREADS=1), take less time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from results import new_parser, show
from study import SCHEME, SEEDS, against, measures_of_runs, show_differences, train

from textcraftor.cli import compose, register
from textcraftor.training.interrupt import Interrupt
from textcraftor.training.loop import tune
from textcraftor.training.train import load

POLICIES = ("last_k", "full", "random_k", "low_variance", "refl", "drtune", "ddpo")
TUNES = ("text_encoder_lora", "denoiser", "denoiser_lora", "both", "both_lora", "two_stages")
METHODS = {policy: (f"gradient={policy}", "tune=text_encoder") for policy in POLICIES} | {
    tune: ("gradient=last_k", f"tune={tune}") for tune in TUNES
}
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FIRST_OF_LORA = 3e-4
# Two thirds of the default run's steps, and of its evaluation two thirds of the prompts and of the seeds.
BUDGET = ("training.steps=40", "watch.every=20", "evaluation.prompts=32", "evaluation.seeds=[0,1]")
COLUMNS = ("total", "pickscore", "judge/taste", "judge/faithfulness", "judge/letters", "clip", "diversity")


def best_rate(folder: Path, method: str) -> float:
    """The learning rate before the one at which the held-out figure of seed 0 falls."""
    rates = [rate for rate in RATES if rate >= FIRST_OF_LORA or not method.endswith("lora")]
    for rate, higher in pairwise(rates):
        if run(folder, method, higher, 0)["held_out"] < run(folder, method, rate, 0)["held_out"]:
            return rate
    return rates[-1]


def run(folder: Path, method: str, rate: float, seed: int) -> dict:
    return train(
        folder / f"{method}_{rate:g}_{seed}", SCHEME, *METHODS[method], *BUDGET, f"optim.lr={rate:g}", f"seed={seed}"
    )


def costs(folder: Path, method: str, rate: float, runs: Sequence[Mapping]) -> list:
    """A row of what a method costs: its rate, calls of the UNet, seconds and memory."""
    text = (folder / f"{method}_{rate:g}_0" / "metrics.jsonl").read_text()
    calls = np.mean(
        [[line[n] for n in ("denoiser_calls", "gradient_steps")] for line in map(json.loads, text.splitlines())], 0
    )
    gb = np.mean([one["peak_memory_gb"] for one in runs])
    return [method, rate, f"{calls[0]:.1f}, {calls[1]:.1f}", seconds_per_step(folder, method), gb]


def seconds_per_step(folder: Path, method: str, steps: int = 7) -> float:
    """The mean of all steps but the first, measured apart from the runs, which may have shared the machine."""
    file = folder / f"{method}.seconds.json"
    if not file.exists():
        job, seconds = load(compose("train", [SCHEME, *METHODS[method]])), list[float]()
        pace = replace(job.pace, steps=steps, watch_every=steps + 1, checkpoint_every=steps + 1)
        log = lambda step, line: seconds.append(line["seconds"])  # noqa: E731
        tune(job.objective, job.state(), pace, log, lambda _: None, lambda _: None, Interrupt())
        file.write_text(json.dumps(seconds))
    return float(np.mean(json.loads(file.read_text())[1:]))


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--folder", type=Path, default=Path("runs/methods"))
    arguments = parser.parse_args()
    register()
    folder, rates = arguments.folder, {method: best_rate(arguments.folder, method) for method in arguments.methods}
    runs = {method: [run(folder, method, rate, seed) for seed in SEEDS] for method, rate in rates.items()}
    found = {method: measures_of_runs(summaries) for method, summaries in runs.items()}
    first = arguments.methods[0]
    show_differences("methods", "methods", found, COLUMNS, arguments.store)
    if others := {method: after for method, (_, after) in found.items() if method != first}:
        show_differences("methods", f"against {first}", against(found[first][1], others), COLUMNS, arguments.store)
    columns = ["method", ("rate", "g"), "UNet calls, with gradient", ("s/step", ".2f"), ("GB", ".2f")]
    rows = [costs(folder, method, rates[method], runs[method]) for method in arguments.methods]
    show("methods", "costs", columns, rows, arguments.store)


if __name__ == "__main__":
    main()
