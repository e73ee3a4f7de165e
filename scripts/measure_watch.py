"""How soon the watch sees a hacked run, and whether it leaves healthy ones alone: `python scripts/measure_watch.py`.

Five seeds of settings that hack on the toybox and of settings that do not, all with the same held-out scorers, a
reader among them. Of each run: the first alarm, how far the judge's measure that fell most had fallen by then, and what
the exported weights gained on other prompts. Finished runs are skipped and unfinished ones resumed, so the script can
be interrupted at any time. `--only simulated` takes seconds: how often the alarm `worst` rings where nothing changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from results import new_parser, show
from study import JUDGE, SCHEME, SEEDS, train

from textcraftor.evaluation.statistics import paired_z

HELD_OUT = [
    key
    for name in ("pickscore", "clip", "ocr")
    for key in (f"+reward@rewards.{name}={name}", f"rewards.{name}.weight=0")
]
KEYS = (SCHEME, "rewards=hpsv2", *HELD_OUT, "watch.every=10", "evaluation.seeds=[0,1]")
SETTINGS = {  # what is tuned, the rate, and whether it hacks
    "text_encoder_lora, 1e-2": ("tune=text_encoder_lora", "optim.lr=1e-2", True),
    "denoiser_lora, 1e-2": ("tune=denoiser_lora", "optim.lr=1e-2", True),
    "text_encoder, default": ("tune=text_encoder", "optim.lr=auto", False),
    "denoiser, default": ("tune=denoiser", "optim.lr=auto", False),
}
ALARMS = ("worst", "embedding_drift", "held_out")  # each by itself; `any` is all that are configured
HEALTHY, HACKED = "healthy", "hacked"
LOOKS, LIMITS, RUNS = (4, 8, 20), (-2.0, -2.5, -3.0, -3.5), 2000  # of simulated runs
JUDGED = (48, 48, 16)  # prompts that each of their held-out scorers judges; the last one reads
CHANGES = {  # of a prompt from look to look, 0 on average
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails (t, 3)": lambda rng, shape: rng.standard_t(3, shape),
    "mostly ties": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.5),
    "skewed (exponential)": lambda rng, shape: 1 - rng.exponential(size=shape),
}


def falls(points: Sequence[Mapping], index: int) -> np.ndarray:
    """How far each of the judge's measures has fallen from step 0 to a look, on the watched prompts."""
    return np.array([points[0][name] - points[index][name] for name in JUDGE])


def first_look(points: Sequence[Mapping], alarm: str) -> int | None:
    """The index of the first look at which an alarm rings: the one named, or `any`."""
    rings = [bool(point["alarms"]) if alarm == "any" else alarm in point["alarms"] for point in points]
    return rings.index(True) if True in rings else None


def row(setting: str, seed: int, kind: str, summary: Mapping) -> list:
    """One run: when which alarms rang first, what the judge lost by then and by the end, and what is exported."""
    points = summary["watched"]
    at = first_look(points, "any")
    rung = [points[at]["step"], ", ".join(points[at]["alarms"])] if at is not None else [None, "none"]
    by_then = falls(points, at).max() if at is not None else None
    gains = [summary["difference"][name] for name in JUDGE]
    return [setting, seed, kind, *rung, by_then, falls(points, -1).max(), summary["saved_step"], *gains]


def of_alarm(alarm: str, runs: Mapping[str, Sequence[Mapping]]) -> list:
    """An alarm over all runs: hacked ones that it rings in, how far the judge's measure that fell most on average had
    fallen by then, and healthy ones that it rings in."""
    looks = {kind: [(one["watched"], first_look(one["watched"], alarm)) for one in some] for kind, some in runs.items()}
    caught = [falls(points, at) for points, at in looks[HACKED] if at is not None]
    rung = {kind: f"{sum(at is not None for _, at in some)} of {len(some)}" for kind, some in looks.items()}
    return [alarm, rung[HACKED], np.mean(caught, 0).max() if caught else None, rung[HEALTHY]]


def lowest_z(draw: Callable, looks: int, rng: np.random.Generator) -> float:
    """The lowest z of any scorer at any look of a run in which nothing changes but by chance, look upon look."""
    walks = [draw(rng, (looks, prompts)).cumsum(0) for prompts in JUDGED]
    return min(paired_z(look) for walk in walks for look in walk)


def simulated(arguments: argparse.Namespace) -> None:
    """The share of such runs in which `worst` rings, by its limit."""
    rng, rows = np.random.default_rng(0), []
    for name, draw in CHANGES.items():
        for looks in LOOKS:
            lowest = np.array([lowest_z(draw, looks, rng) for _ in range(RUNS)])
            rows.append([name, looks, *(float((lowest < limit).mean()) for limit in LIMITS)])
    columns = ["changes", "looks", *((f"limit {limit:g}", ".3f") for limit in LIMITS)]
    show("watch", "false alarms", columns, rows, arguments.store, judged=list(JUDGED), runs=RUNS)


def trained(arguments: argparse.Namespace) -> None:
    """Real runs, a table of them and a table of the alarms."""
    rows, runs = [], dict[str, list[Mapping]]({HACKED: [], HEALTHY: []})
    for setting, (tune, rate, hacks) in SETTINGS.items():
        kind = HACKED if hacks else HEALTHY
        for seed in arguments.seeds:
            folder = arguments.folder / f"{setting.replace(', ', '_')}_{seed}"
            summary = train(folder, *KEYS, tune, rate, f"training.steps={arguments.steps}", f"seed={seed}")
            rows.append(row(setting, seed, kind, summary))
            runs[kind].append(summary)
    seeds = {"seeds": list(arguments.seeds)}
    gains = [(f"exported: {name}", "+.3f") for name in JUDGE]
    columns = ["tune, rate", "seed", "", "first alarm at step", "alarms", ("judge lost by then", "+.3f")]
    columns += [("by the end", "+.3f"), "exported step", *gains]
    show("watch", "runs", columns, rows, arguments.store, **seeds)
    columns = ["alarm", "hacked runs that ring", ("judge lost by then", "+.3f"), "healthy runs that ring"]
    show("watch", "alarms", columns, [of_alarm(one, runs) for one in ("any", *ALARMS)], arguments.store, **seeds)


PARTS = {"simulated": simulated, "trained": trained}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/watch"))
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    arguments = parser.parse_args()
    for part in arguments.only:
        PARTS[part](arguments)


if __name__ == "__main__":
    main()
