"""What mixing, switching and the baselines do on the toybox: `python scripts/measure_mixing.py`.

Trains what it needs (three seeds of the default run, of one reward each, and of DDPO), evaluates every mix on the same
64 prompts against one base, and prints the tables of docs/inference.md. What is finished is kept: the script can be
interrupted at any time, and parts of it asked for alone (--only strip merge switch styles baselines).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from compare_methods import train
from scipy.stats import spearmanr

from textcraftor.cli import call
from textcraftor.evaluation.statistics import paired_difference
from textcraftor.evaluation.suite import measures_of, read_rows_of

SEEDS = (0, 1, 2)  # of training
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
PICTURES = ("limit=32", "seeds=[0,1]", "+reward@rewards.imagereward=imagereward", "rewards.imagereward.weight=0")
RUNS = {
    "default": (),
    "aesthetic": ("rewards=aesthetic",),
    "hpsv2": ("rewards=hpsv2",),
    "ddpo": ("gradient=ddpo",),
}
SHOWN = (
    "total",
    "aesthetic",
    "hpsv2",
    "pickscore",
    "imagereward",
    "clip",
    "judge/taste",
    "judge/faithfulness",
    "judge/letters",
)


def run(folder: Path, name: str, seed: int) -> Path:
    """A finished training run."""
    place = folder / "runs" / f"{name}_{seed}"
    train(place, *RUNS[name], f"seed={seed}")
    return place


def measures(folder: Path, name: str, *keys: str) -> dict[str, np.ndarray]:
    """Every measure of an evaluation, (prompts, seeds), made against the common base where it is not there yet."""
    place, base = folder / "evaluations" / name, folder / "evaluations" / "base"
    if not (place / "report.html").exists():
        against = [] if name == "base" else [f"base={base}"]
        call("evaluate", [*PICTURES, *against, *keys, f"run_dir={place}"])
    return measures_of(read_rows_of(place), 2)


def several(folder: Path, name: str, *keys: str, of: str = "default") -> dict[str, np.ndarray]:
    """The same of all training seeds, joined as further prompts: (training seeds x prompts, seeds)."""
    each = [measures(folder, f"{name}_{seed}", f"tuned.a={run(folder, of, seed)}", *keys) for seed in SEEDS]
    return {key: np.concatenate([one[key] for one in each]) for key in each[0]}


def base(folder: Path) -> dict[str, np.ndarray]:
    """The untuned model's, as often as there are training seeds."""
    found = measures(folder, "base")
    return {key: np.concatenate([values] * len(SEEDS)) for key, values in found.items()}


def table(folder: Path, rows: dict[str, dict[str, np.ndarray]], against: dict[str, np.ndarray]) -> None:
    """Each row's paired difference from `against`, with its 95 % interval."""
    print(f"| | {' | '.join(SHOWN)} |\n|{' --- |' * (len(SHOWN) + 1)}")
    for name, found in rows.items():
        cells = [paired_difference(against[key], found[key]) for key in SHOWN]
        print(f"| {name} | {' | '.join('{mean:+.3f} [{low:+.3f}, {high:+.3f}]'.format(**cell) for cell in cells)} |")
    print(flush=True)


def strip(folder: Path) -> None:
    """Does the trained reward rise with the weight?"""
    rows = {f"{weight:g}": several(folder, f"strip_{weight:g}", f"mix.a={weight}") for weight in WEIGHTS[1:]}
    print("Interpolation, the weight of the tuned encoder; differences from the base:\n")
    table(folder, rows, base(folder))
    totals = np.array([base(folder)["total"].mean(1), *(found["total"].mean(1) for found in rows.values())])
    each = [spearmanr(WEIGHTS, prompt).statistic for prompt in totals.T]
    overall = spearmanr(WEIGHTS, totals.mean(1)).statistic
    print(
        f"Rank correlation of the weight with the trained total: {overall:.2f} over {totals.shape[1]} prompts' mean, "
        f"{np.nanmean(each):.2f} on average over single prompts.\n"
    )


def merge(folder: Path) -> None:
    """Adding up weights instead of embeddings."""
    rows = {
        f"{weight:g}, {how}": several(
            folder, f"{how}_{weight:g}", f"mix.a={weight}", f"merge={how == 'weights'}".lower()
        )
        for weight in (0.5, 1.5)
        for how in ("embeddings", "weights")
    }
    print("What is added up, embeddings or the encoders' weights; differences from the base:\n")
    table(folder, rows, base(folder))


def switch(folder: Path) -> None:
    """The tuned encoder in the last steps alone."""
    rows = {f"last {n} of 15": several(folder, f"last_{n}", "mix.a=1", f"switch.last={n}") for n in (5, 10)}
    rows |= {"all 15": several(folder, "strip_1", "mix.a=1.0")}
    print("The tuned encoder in the last steps alone; differences from the base:\n")
    table(folder, rows, base(folder))


def styles(folder: Path) -> None:
    """Two encoders of different rewards and their mixture, against both parents."""
    first = several(folder, "only_aesthetic", "mix.a=1", of="aesthetic")
    second = several(folder, "only_hpsv2", "mix.a=1", of="hpsv2")
    each = []
    for seed in SEEDS:
        other = run(folder, "hpsv2", seed)
        keys = (f"tuned.a={run(folder, 'aesthetic', seed)}", f"tuned.b={other}", "mix.a=.5", "mix.b=.5")
        each.append(measures(folder, f"styles_{seed}", *keys))
    mixed = {key: np.concatenate([one[key] for one in each]) for key in each[0]}
    print("Half an encoder tuned on the aesthetic scorer, half one tuned on HPSv2; differences from the base:\n")
    table(folder, {"aesthetic": first, "hpsv2": second, "half and half": mixed}, base(folder))
    print("The same mixture; differences from its parents:\n")
    table(folder, {"from aesthetic": mixed}, first)
    table(folder, {"from hpsv2": mixed}, second)


def baselines(folder: Path) -> None:
    """The base, prompt engineering, policy gradient and the reward's gradient."""
    upsampled = measures(folder, "upsampled", "upsample=true")
    rows = {
        "prompts upsampled": {key: np.concatenate([values] * len(SEEDS)) for key, values in upsampled.items()},
        "DDPO": several(folder, "ddpo", "mix.a=1", of="ddpo"),
        "TextCraftor": several(folder, "strip_1", "mix.a=1.0"),
    }
    print("Baselines; differences from the base:\n")
    table(folder, rows, base(folder))
    for name in ("ddpo", "default"):
        lines = (run(folder, name, 0) / "metrics.jsonl").read_text().splitlines()
        calls = sum(json.loads(line)["unet_calls"] + 2 * json.loads(line)["gradient_steps"] for line in lines)
        print(f"{name}: {calls} UNet passes a prompt of a batch in training, a gradient step counted as three")


PARTS = {"strip": strip, "merge": merge, "switch": switch, "styles": styles, "baselines": baselines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/mixing"))
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    arguments = parser.parse_args()
    for part in arguments.only:
        PARTS[part](arguments.folder)


if __name__ == "__main__":
    main()
