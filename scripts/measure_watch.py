"""How soon the watch sees a hacked run, and whether it leaves healthy ones alone: `python scripts/measure_watch.py`.

Five seeds of settings that hack on the toybox and of settings that do not, all with the same held-out scorers, a
reader among them. Of each run: the first alarm, how far the judge's measure that fell most had fallen by then, and what
the exported weights gained on other prompts. Finished runs are skipped and unfinished ones resumed, so the script can
be interrupted at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from results import new_parser, show
from study import JUDGE, SCHEME, SEEDS, train

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


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/watch"))
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    arguments = parser.parse_args()
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


if __name__ == "__main__":
    main()
