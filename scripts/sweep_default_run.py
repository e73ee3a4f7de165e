"""The small sweep that the defaults of `textcraftor train` were chosen by: `python scripts/sweep_default_run.py`.

Trains one setting after another (finished ones are skipped), then prints a table of the judge's figures, before to
after on held-out prompts, with the lower end of each paired 95 % interval. On a few cores two sweeps of different
names side by side, with one thread each (OMP_NUM_THREADS=1), take less time than one of all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from study import train

SETTINGS = {
    "default": [],
    "lr 3e-5": ["optim.lr=3e-5"],
    "lr 3e-4": ["optim.lr=3e-4"],
    "K 2": ["gradient.k=2"],
    "K 10": ["gradient.k=10"],
    "tuned on last 10": ["conditioning.tuned_on=last_n", "conditioning.n=10"],
    "tuned on last 5": ["conditioning.tuned_on=last_n", "conditioning.n=5"],
    "batch 4": ["training.batch_size=4"],
    "no warm-up": ["training.warmup=0"],
}
COLUMNS = ("total", "judge/taste", "judge/faithfulness", "judge/letters", "clip", "diversity")


def row(name: str, folder: Path) -> str:
    summary = json.loads((folder / "summary.json").read_text())
    cells = []
    for column in COLUMNS:
        change = summary["difference"][column]
        cells.append(f"{change['mean']:+.3f} ({change['low']:+.3f})")
    seconds = summary["seconds"]["tuning"]
    return f"| {name} | {' | '.join(cells)} | {seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(SETTINGS), help="settings to run; all by default")
    parser.add_argument("--folder", type=Path, default=Path("runs/sweep"))
    arguments = parser.parse_args()
    for name in arguments.names:
        train(arguments.folder / name.replace(" ", "_"), *SETTINGS[name])
    print(f"| setting | {' | '.join(COLUMNS)} | seconds |\n| --- |{' --- |' * (len(COLUMNS) + 1)}")
    for name in arguments.names:
        print(row(name, arguments.folder / name.replace(" ", "_")))


if __name__ == "__main__":
    main()
