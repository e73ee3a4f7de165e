"""What mixing, switching and the baselines do on the toybox: `python scripts/measure_mixing.py`.

Trains what it needs (five seeds of the default run, of one reward each, and of DDPO), evaluates every mix on the same
64 prompts against one base, and prints the tables of docs/inference.md. What is finished is kept: the script can be
interrupted at any time, and parts of it asked for alone (--only strip merge switch styles baselines).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from results import new_parser
from scipy.stats import spearmanr
from study import BRIEF, JUDGE, PICTURES, SCHEME, Measures, Study, against

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
TRAIN = ("train", SCHEME, *BRIEF)
RUNS = {
    "default": TRAIN,
    "aesthetic": (*TRAIN, "rewards=aesthetic"),
    "hpsv2": (*TRAIN, "rewards=hpsv2"),
    "ddpo": (*TRAIN, "gradient=ddpo", "optim.lr=3e-5"),  # the best of its sweep in docs/training.md
}
SHOWN = ("total", "aesthetic", "hpsv2", "pickscore", "clip", *JUDGE)
TUNED = {"tuned.a": "default"}


def dialled(study: Study, weight: float, merge: bool = False) -> Measures:
    """The default run's encoder with this weight, the original with the rest."""
    name = f"{'merged' if merge else 'dialled'}_{weight:g}"
    return study.several(name, TUNED, f"mix.a={weight}", f"merge={merge}".lower())


def strip(study: Study) -> None:
    """Does the trained reward rise with the weight?"""
    rows = {f"{weight:g}": dialled(study, weight) for weight in WEIGHTS[1:]}
    study.table("strength", against(study.base(), rows))
    totals = np.array([found["total"].mean((0, 2)) for found in (study.base(), *rows.values())])
    each = [spearmanr(WEIGHTS, prompt).statistic for prompt in totals.T]
    overall = spearmanr(WEIGHTS, totals.mean(1)).statistic
    print(
        f"Rank correlation of the weight with the trained total: {overall:.2f} over {totals.shape[1]} prompts' mean, "
        f"{np.nanmean(each):.2f} on average over single prompts.\n"
    )


def merge(study: Study) -> None:
    """Adding up weights instead of embeddings."""
    rows = {
        f"{weight:g}, {'weights' if merge else 'embeddings'}": dialled(study, weight, merge)
        for weight in (0.5, 1.5)
        for merge in (False, True)
    }
    study.table("embeddings or weights", against(study.base(), rows))


def switch(study: Study) -> None:
    """The tuned encoder in the last steps alone."""
    rows = {f"last {n} of 15": study.several(f"last_{n}", TUNED, "mix.a=1", f"switch.last={n}") for n in (5, 10)}
    rows |= {"all 15": dialled(study, 1)}
    study.table("switch", against(study.base(), rows))


def styles(study: Study) -> None:
    """Two encoders of different rewards and their mixture, against both parents."""
    first = study.several("only_aesthetic", {"tuned.a": "aesthetic"}, "mix.a=1")
    second = study.several("only_hpsv2", {"tuned.a": "hpsv2"}, "mix.a=1")
    mixed = study.several("styles", {"tuned.a": "aesthetic", "tuned.b": "hpsv2"}, "mix.a=.5", "mix.b=.5")
    found = {"aesthetic": first, "hpsv2": second, "half and half": mixed}
    study.table("styles", against(study.base(), found))
    study.table("half and half", {"from aesthetic": (first, mixed), "from hpsv2": (second, mixed)})


def baselines(study: Study) -> None:
    """The base, prompt engineering, policy gradient and the reward's gradient."""
    rows = {
        "prompts upsampled": study.measures("upsampled", "upsample=true"),
        "DDPO": study.several("ddpo", {"tuned.a": "ddpo"}, "mix.a=1"),
        "TextCraftor": dialled(study, 1),
    }
    study.table("rivals", against(study.base(), rows))
    for name in ("ddpo", "default"):
        lines = (study.run(name, 0) / "metrics.jsonl").read_text().splitlines()
        calls = sum(json.loads(line)["denoiser_calls"] + 2 * json.loads(line)["gradient_steps"] for line in lines)
        print(f"{name}: {calls} UNet passes a prompt of a batch in training, a gradient step counted as three")


PARTS = {"strip": strip, "merge": merge, "switch": switch, "styles": styles, "baselines": baselines}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/mixing"))
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    arguments = parser.parse_args()
    for part in arguments.only:
        PARTS[part](Study(arguments.folder, RUNS, PICTURES, SHOWN, "mixing", arguments.store))


if __name__ == "__main__":
    main()
