"""Looks for runs in which the reward rises while the judge falls: `python scripts/search_hacking.py`.

One preference model, no constraint, a fixed number of steps, a grid of what is tuned and how fast. The judge is the sum
of its three measures. Each run that hacks is looked at on more prompts and made again with each remedy alone; its LoRA
is weakened; where an early stop would have ended it is read off. Prints what the watch saw and when its alarms rang.
Each run has one training seed: it shows what can happen, and makes no claim about a method or a remedy. Finished runs
are skipped, unfinished ones resumed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import OmegaConf
from results import new_parser, show
from study import JUDGE, SCHEME, Measures, Study, against, train

from textcraftor.evaluation.evaluate import Evaluation
from textcraftor.models.loading import load_pipeline
from textcraftor.models.tuned import load_denoiser, load_text_encoders, tuned_folders
from textcraftor.training.train import load

GRID = [
    ("text_encoder", "1e-4"),
    ("text_encoder", "1e-3"),
    ("text_encoder_lora", "1e-2"),
    ("denoiser", "3e-5"),
    ("denoiser", "1e-4"),
    ("denoiser", "3e-4"),
    ("denoiser_lora", "1e-3"),
    ("denoiser_lora", "1e-2"),
]
REWARD = ("rewards=hpsv2", "+reward@rewards.pickscore=pickscore", "rewards.pickscore.weight=0")
WATCHED = ("+reward@rewards.clip=clip", "rewards.clip.weight=0", "watch.every=20", "watch.prompts=24")
BRIEF = ("evaluation.prompts=2", "evaluation.seeds=[0]")  # the watched prompts are what is judged
SUITE = ("suite=toybox", "limit=32", "seeds=[0,1]")
REMEDIES = {
    "CLIP constraint": ("rewards.clip.weight=20",),
    "EMA and hinge": ("training.ema_decay=0.98", "rewards.hpsv2.weight=100", "+rewards.hpsv2.target=0.45"),
}
STOP_ON = {"held_out", "gap", "diversity", "clip"}
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
MEASURES = ("hpsv2", "pickscore", "clip", *JUDGE, "diversity")


def search(folder: Path, steps: int, tune: str, rate: str, name: str = "", *extra: str) -> dict:
    """One run of the grid, or of a remedy; its last weights are what is judged, not its best."""
    chosen = (f"tune={tune}", f"optim.lr={rate}", f"training.steps={steps}", *extra)
    return train(folder / f"{tune}_{rate}{name}", SCHEME, *REWARD, *WATCHED, *BRIEF, *chosen)


def change(summary: dict, measure: str, index: int = -1) -> float:
    """From before training to a look on the way, on the watched prompts."""
    return summary["watched"][index][measure] - summary["watched"][0][measure]


def hacked(summary: dict) -> bool:
    """Whether in the end the judge has fallen and the reward risen."""
    return change(summary, "hpsv2") > 0 > sum(change(summary, measure) for measure in JUDGE)


def exported(summary: dict) -> int:
    """The look whose weights an early stop exports: the best held-out figure of those until it ends the run."""
    looks = summary["watched"]
    end = next((index for index, look in enumerate(looks) if STOP_ON & {*look["alarms"]}), len(looks) - 1)
    return max(range(1, end + 1), key=lambda index: looks[index]["held_out"])


@torch.no_grad()
def weakened(run: Path) -> dict[float, dict[str, float]]:
    """Each measure's change on the watched prompts, by the strength of a run's last adapters."""
    job = load(OmegaConf.load(run / "config.yaml"))
    before = Evaluation.load(run / "before_watched.npz")
    found = {}
    for strength in STRENGTHS:
        fresh = load_pipeline(job.config.model.path)
        denoiser = job.model.family.denoiser
        setattr(job.model.pipeline, denoiser, getattr(fresh, denoiser).to(job.model.device))
        if tuned_folders(run / "last", [denoiser]):
            load_denoiser(job.model, run / "last", strength)
        else:
            load_text_encoders(job.model, run / "last", "tuned", strength)
        after = job.look(job.schedule, job.watched, before).means()
        found[strength] = {name: after[name] - before.means()[name] for name in MEASURES}
    return found


def describe(name: str, summary: dict, index: int = -1) -> list:
    rang = [f"{alarm} at {point['step']}" for point in summary["watched"] for alarm in point["alarms"]]
    first = dict(reversed([one.split(" at ") for one in rang]))
    alarms = ", ".join(f"{alarm} at {step}" for alarm, step in first.items()) or "none"
    changes = [change(summary, measure, index) for measure in MEASURES]
    return [name, summary["watched"][index]["step"], *changes, alarms]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/hacking"))
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    found = {(tune, rate): search(arguments.folder, arguments.steps, tune, rate) for tune, rate in GRID}
    print("One training seed a run: what can happen, and no claim about a method or a remedy.\n")
    columns = ["run", "steps", *((measure, "+.3f") for measure in MEASURES), "alarms, first rung"]
    rows = [describe(f"{tune}, {rate}", summary) for (tune, rate), summary in found.items()]
    show("hacking", "rates", columns, rows, arguments.store)
    study = Study(arguments.folder, {}, SUITE, MEASURES, "hacking", arguments.store)  # the watched prompts are few
    hacking = [key for key in found if hacked(found[key])]
    if not hacking:
        print(f"\nNo run of this grid hacks within {arguments.steps} steps: that is the bound that was searched.")
    last, cures = dict[str, Measures](), []
    for tune, rate in hacking:
        name, summary = f"{tune}_{rate}", found[tune, rate]
        last[f"{tune}, {rate}"] = study.measures(name, f"tuned.a={arguments.folder / name / 'last'}")
        for remedy, extra in REMEDIES.items():
            again = search(arguments.folder, arguments.steps, tune, rate, f"_{remedy.replace(' ', '_')}", *extra)
            cures.append(describe(f"{tune}: {remedy}", again))
        cures.append(describe(f"{tune}: early stop, what is exported", summary, exported(summary)))
        if tune.endswith("lora"):
            for strength, measures in weakened(arguments.folder / name).items():
                cures.append([f"{tune}: strength {strength}", None, *(measures[key] for key in MEASURES), None])
    if hacking:
        study.table("last weights", against(study.measures("base"), last))
        show("hacking", "cures", columns, cures, arguments.store)


if __name__ == "__main__":
    main()
