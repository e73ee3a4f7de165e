"""What a pass through the UNet buys: `python scripts/reward_per_pass.py`.

All runs of a kind spend the same number of UNet passes, as many steps as that takes, and are looked at on the way, on
prompts that they never learn from. `single` changes one setting of TextCraftor's scheme at a time; `search` looks for
the best settings within the scheme (learning rate, averaging, batch), among everything, and among cheap ones that are
given a tenth of the passes; `final` trains the winners with five seeds. Prints tables and draws
runs/per_pass/frontier.png. What a setting gains is claimed by the evaluation after training, with an interval over
training seeds and prompts, which neither train nor choose. Finished runs are skipped and unfinished ones resumed; on
two cores two of these run side by side on different --settings or --searches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import matplotlib
import numpy as np
import optuna
from results import Column, new_parser, show
from study import JUDGE, NOTE, SCHEME, SEEDS, cell, measures_of_runs, train

from textcraftor.cli import call
from textcraftor.data.prompt_files import read_prompts
from textcraftor.sampling.needs import steps_between
from textcraftor.toybox.world2.records import write_records

PASSES = 12_000  # of single samples: guidance makes a call two, a gradient makes a call three
WATCHED = ("watch.prompts=24", "evaluation.prompts=24", "evaluation.seeds=[0]")
START = {"gradient": "last_k", "gradient.k": 5, "optim.lr": 3e-4}  # TextCraftor's scheme
EVALUATED = ("pickscore", *JUDGE)
CHAIN, GUIDANCE, BATCH = 15, 3.0, 8  # of the toybox
FIRST, LAST = 0.75, 0.975  # of ReFL
RENDERED, OWN = "rendered", "own"  # pictures for `direct`: the world's, or the untuned model's
OWN_PICTURES, OWN_STEPS, TRAINED = 64, 8, Path("textcraftor/toybox/prompts/train.txt")
SINGLE: dict[str, dict] = {
    "scheme": {},
    "k 1": {"gradient.k": 1},
    "k 2": {"gradient.k": 2},
    "k 10": {"gradient.k": 10},
    "full": {"gradient": "full"},
    "random_k": {"gradient": "random_k"},
    "low_variance": {"gradient": "low_variance"},
    "refl": {"gradient": "refl"},
    "refl, 4 jumps": {"gradient": "refl", "gradient.jumps": 4},
    "drtune": {"gradient": "drtune"},
    "ddpo": {"gradient": "ddpo", "optim.lr": 3e-5},
    "lr 1e-4": {"optim.lr": 1e-4},
    "lr 1e-3": {"optim.lr": 1e-3},
    "EMA .9": {"training.ema_decay": 0.9},
    "hinge": {"+rewards.aesthetic.target": 6.5, "+rewards.hpsv2.target": 0.5},
    "LoRA, rank 4": {"tune": "text_encoder_lora", "optim.lr": 3e-3, "tune.text_encoder.lora.rank": 4},
    "LoRA, rank 32": {"tune": "text_encoder_lora", "optim.lr": 3e-3, "tune.text_encoder.lora.rank": 32},
    "8 steps in training": {"training.sampling.steps": 8},
    "5 steps in training": {"training.sampling.steps": 5},
    "no guidance in training": {"training.sampling.guidance_scale": 1.0},
    "batch 4": {"training.batch_size": 4},
    "batch 16": {"training.batch_size": 16},
    "no warm-up": {"training.warmup": 0},
    "unconditional branch without gradient": {"conditioning.detach_negative": True},
    "direct, rendered pictures": {
        "gradient": "direct",
        "data.path": RENDERED,
        "captions.p": 1,
        "captions.kind": "short",
    },
    "direct, own pictures": {"gradient": "direct", "data.path": OWN},
}
WITHIN = {
    "optim.lr": [1e-4, 2e-4, 3e-4, 5e-4, 1e-3],
    "training.ema_decay": [0.0, 0.9, 0.95],
    "training.batch_size": [2, 4, 8, 16],
    "training.warmup": [0, 10],
}
AMONG = WITHIN | {
    "gradient": ["last_k", "low_variance", "refl", "drtune", "direct"],
    "gradient.k": [1, 2, 3, 5],
    "gradient.jumps": [1, 2, 4],
    "gradient.first": [0.0, 0.5, 0.75],
    "training.sampling.steps": [3, 5, 8, 15],
    "training.sampling.guidance_scale": [1.0, 2.0, 3.0],
    "conditioning.detach_negative": [False, True],
}

CHEAP = {
    "optim.lr": [1e-4, 2e-4, 3e-4, 5e-4],
    "training.ema_decay": [0.0, 0.9],
    "training.batch_size": [2, 4],
    "training.warmup": [0],
    "training.lr_schedule": ["constant", "cosine"],
    "gradient": ["last_k", "refl", "drtune"],
    "gradient.k": [1, 2],
    "gradient.first": [0.0, 0.5, 0.75],
    "training.sampling.steps": [5],
    "conditioning.detach_negative": [False, True],
}


@dataclass(frozen=True)
class Search:
    """What to choose from, how often, by what and what the winner is then given.

    Args:
        passes, seeds: of a trial; its figure is the mean over seeds of the highest held_out of two looks.
        final: UNet passes of the winner, looked at so often.
    """

    space: Mapping[str, list]
    trials: int
    passes: float
    seeds: Sequence[int]
    final: float
    looks: int


FINAL, TUNED_SCHEME = "best", "within the scheme"
SEARCHES = {
    TUNED_SCHEME: Search(WITHIN, 24, PASSES / 2, SEEDS[:1], 2 * PASSES, 20),
    "among everything": Search(AMONG, 24, PASSES / 2, SEEDS[:1], 2 * PASSES, 20),
    "with a tenth of the passes": Search(CHEAP, 16, PASSES / 5, SEEDS[:2], PASSES / 5, 4),
}


def settled(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The scheme with some settings changed; what its policy does not know is left out, and no step is taken twice."""
    found = START | dict(keys)
    steps, policy = found.get("training.sampling.steps", CHAIN), found["gradient"]
    if policy in ("last_k", "drtune"):
        found["gradient.k"] = min(found["gradient.k"], steps)
    elif policy == "refl":
        late = len(steps_between(steps, found.get("gradient.first", FIRST), LAST))
        found["gradient.jumps"] = min(found.get("gradient.jumps", 1), late)
    elif policy == "direct":
        found.setdefault("data.path", OWN)
    known = {"last_k": ("k",), "drtune": ("k",), "refl": ("jumps", "first"), "direct": ("first",)}.get(policy, ())
    return {
        key: value for key, value in found.items() if key.removeprefix("gradient.") in known or "gradient." not in key
    }


def passes_of(keys: Mapping[str, Any], calls: float, learning: float) -> float:
    """UNet passes of a step with so many calls, so many of them with a gradient."""
    guided = 2 if keys.get("training.sampling.guidance_scale", GUIDANCE) != 1 else 1
    learned = 1 if keys.get("conditioning.detach_negative") else guided
    return keys.get("training.batch_size", BATCH) * (guided * calls + 2 * learned * learning)


def cost_of(keys: Mapping[str, Any]) -> float:
    """UNet passes of one optimiser step, as expected of policies that draw."""
    steps, k = keys.get("training.sampling.steps", CHAIN), keys.get("gradient.k", 5)
    jumps, first = keys.get("gradient.jumps", 1), keys.get("gradient.first", FIRST)
    calls, learning = {
        "last_k": (steps, k),
        "drtune": (steps, k),
        "full": (steps, steps),
        "ddpo": (steps, steps),
        "direct": (1, 1),
        "random_k": (steps, 0.2 * steps),
        "low_variance": (steps + 2, 3),
        "refl": (steps * (LAST - (LAST - first) / (2 * jumps)), jumps),
    }[keys["gradient"]]
    return passes_of(keys, calls, learning)


@dataclass
class Curve:
    """Changes from before training on the watched prompts, look by look.

    Args:
        passes, seconds: spent until each look.
        summary: of the run.
    """

    passes: np.ndarray
    seconds: np.ndarray
    held_out: np.ndarray
    judge: np.ndarray
    summary: dict


class Bench:
    """Runs below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, name: str, keys: Mapping[str, Any], seed: int, passes: float, looks: int = 2) -> Curve:
        keys = settled(keys)
        values, passes_before, seconds_before = dict(keys), 0.0, 0.0
        if "data.path" in keys:
            values["data.path"], passes_before, seconds_before = self.pictures(keys["data.path"])
        steps = max(looks, round((passes - passes_before) / cost_of(keys)))
        watched = (*WATCHED, f"watch.every={-(-steps // looks)}")
        place = self.folder / f"{name.replace(' ', '_').replace(',', '')}_{seed}"
        overrides = [f"{key}={value}" for key, value in values.items()]
        summary = train(place, SCHEME, *overrides, *watched, f"training.steps={steps}", f"seed={seed}")
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        each = [passes_of(keys, line["denoiser_calls"], line["gradient_steps"]) for line in lines]
        spent = np.cumsum([passes_before, *each])
        seconds = np.cumsum([seconds_before, *(line["seconds"] for line in lines)])
        points = summary["watched"]
        at = [point["step"] for point in points]
        judged = [np.mean([point[name] - points[0][name] for name in JUDGE]) for point in points]
        held_out = np.array([point["held_out"] for point in points])
        return Curve(spent[at], seconds[at], held_out, np.array(judged), summary)

    def pictures(self, name: str) -> tuple[Path, float, float]:
        """A captioned data set, made once, and the UNet passes and seconds that it cost."""
        place = self.folder / name
        told = place / "seconds.json"
        if not told.exists():
            begun = perf_counter()
            self.folder.mkdir(parents=True, exist_ok=True)
            if name == RENDERED:
                write_records(place, 2000, seed=71)
            else:
                prompts = self.folder / "own.txt"
                prompts.write_text("\n".join(read_prompts(TRAINED)[:OWN_PICTURES]) + "\n")
                chain = f"sampling.steps={OWN_STEPS}"
                call("generate", [f"prompts.path={prompts}", "seeds=[0]", chain, f"run_dir={place}"])
            told.write_text(json.dumps(perf_counter() - begun))
        if name == RENDERED:
            return place, 0.0, 0.0
        return place, OWN_PICTURES * OWN_STEPS * 2.0, json.loads(told.read_text())

    def curves(self, name: str, keys: Mapping[str, Any], passes: float, looks: int = 2) -> list[Curve]:
        return [self.run(name, keys, seed, passes, looks) for seed in SEEDS]

    def search(self, search: Search) -> dict[str, Any]:
        """The settings with the highest held-out figure; finished trials are not run again."""
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))

        def objective(trial: optuna.Trial) -> float:
            keys = settled({key: trial.suggest_categorical(key, choices) for key, choices in search.space.items()})
            name = " ".join(f"{key.rpartition('.')[2]} {value}" for key, value in keys.items())
            curves = [self.run(f"trial {name} {search.passes:g}", keys, seed, search.passes) for seed in search.seeds]
            return float(np.mean([curve.held_out.max() for curve in curves]))

        study.optimize(objective, search.trials)
        return study.best_params


def mean_of(curves: list[Curve], field: str) -> np.ndarray:
    return np.mean([getattr(curve, field) for curve in curves], 0)


def show_ends(title: str, found: Mapping[str, list[Curve]], store: bool) -> None:
    """The last look, mean and standard deviation over training seeds; and the evaluation after training."""
    rows = []
    for name, curves in found.items():
        ends = [[getattr(curve, field)[-1] for curve in curves] for field in ("held_out", "judge")]
        before, after = measures_of_runs([curve.summary for curve in curves])
        rows.append(
            [
                name,
                *(mean_of(curves, field)[-1] for field in ("passes", "seconds")),
                *({"mean": np.mean(values), "sd": np.std(values, ddof=1)} for values in ends),
                *(cell(before[measure], after[measure]) for measure in EVALUATED),
            ]
        )
    columns: list[Column] = [
        "setting",
        ("UNet passes", ".0f"),
        ("seconds", ".0f"),
        ("held_out", "+.3f"),
        ("judge", "+.3f"),
    ]
    columns += [(f"{name}, evaluated", "+.3f") for name in EVALUATED]
    show("reward_per_pass", title, columns, rows, store, seeds=SEEDS)
    print(f"{len(SEEDS)} training seeds. {NOTE}\n", flush=True)


def cost_to_reach(goal: float, curves: list[Curve], field: str) -> float:
    """What the mean curve has spent when it first reaches a held-out figure; infinite where it never does."""
    heights = np.maximum.accumulate(mean_of(curves, "held_out"))
    if heights[-1] < goal:
        return float("inf")
    first = int(np.argmax(heights >= goal)) + 1
    return float(np.interp(goal, heights[:first], mean_of(curves, field)[:first]))


def show_factors(baseline: str, found: Mapping[str, list[Curve]], store: bool) -> None:
    """How much sooner other settings reach what the baseline reaches at most, on average and seed by seed."""
    goal = float(mean_of(found[baseline], "held_out").max())
    spent = {field: cost_to_reach(goal, found[baseline], field) for field in ("passes", "seconds")}
    at = f"at {spent['passes']:.0f} passes, {spent['seconds']:.0f} s"
    print(f"To {baseline}'s highest held_out, {goal:+.3f}, {at} (of mean curves, without an interval):\n")
    columns = ["setting", "passes", "seconds", "times fewer passes", "times fewer seconds", "seed by seed"]
    rows = []
    for name, curves in found.items():
        needed = {field: cost_to_reach(goal, curves, field) for field in spent}
        each = ", ".join(number_of(cost_to_reach(goal, [curve], "passes")) for curve in curves)
        factors = [f"{spent[field] / needed[field]:.1f}" if np.isfinite(needed[field]) else "" for field in spent]
        if name.startswith(FINAL) and name != baseline:
            rows.append([name, *map(number_of, needed.values()), *factors, each])
    show("reward_per_pass", f"as far as {baseline}", columns, rows, store, seeds=SEEDS)


def number_of(spent: float) -> str:
    return f"{spent:.0f}" if np.isfinite(spent) else "not reached"


def draw(found: Mapping[str, list[Curve]], file: Path) -> None:
    """Held-out reward and judge against passes and seconds: the winners of the searches bold, single settings thin."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, panels = pyplot.subplots(2, 2, figsize=(13, 9), layout="constrained", sharey="col")
    for (spent, unit), row in zip((("passes", "UNet passes"), ("seconds", "seconds")), panels, strict=True):
        for (field, label), axes in zip((("held_out", "held-out reward, sd"), ("judge", "judge")), row, strict=True):
            bold = iter(("black", "tab:blue", "tab:red"))
            for index, (name, curves) in enumerate(found.items()):
                if name.startswith(FINAL):
                    style = {"color": next(bold), "linewidth": 2.5}
                else:
                    style = {"color": pyplot.get_cmap("tab20")(index % 20), "linewidth": 1, "alpha": 0.7}
                    style["linestyle"] = "-" if index < 20 else "--"
                x, y = mean_of(curves, spent)[1:], mean_of(curves, field)[1:]
                axes.plot(x, y, label=name, marker=".", **style)
            axes.set(xscale="log", xlabel=unit, ylabel=f"{label}, change")
            axes.grid(alpha=0.3)
    canvas.legend(*panels[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    canvas.savefig(file, dpi=110)
    pyplot.close(canvas)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/per_pass"))
    parser.add_argument(
        "--parts", nargs="*", default=["single", "search", "final"], choices=["single", "search", "final"]
    )
    parser.add_argument("--settings", nargs="*", default=list(SINGLE), choices=SINGLE)
    parser.add_argument("--searches", nargs="*", default=list(SEARCHES), choices=SEARCHES)
    arguments = parser.parse_args()
    bench, found = Bench(arguments.folder), dict[str, list[Curve]]()
    if "single" in arguments.parts:
        found |= {name: bench.curves(name, SINGLE[name], PASSES) for name in arguments.settings}
        show_ends("settings", found, arguments.store)
    searches = {name: SEARCHES[name] for name in arguments.searches if {"search", "final"} & set(arguments.parts)}
    best = {name: bench.search(search) for name, search in searches.items()}
    for name, keys in best.items():
        print(f"best of {searches[name].trials} {name}: {' '.join(f'{k}={v}' for k, v in settled(keys).items())}\n")
    if "final" in arguments.parts:
        final = {
            f"{FINAL} {name}": bench.curves(f"{FINAL} {name}", best[name], search.final, search.looks)
            for name, search in searches.items()
        }
        show_ends("searches", final, arguments.store)
        found |= final
        for baseline in ("scheme", f"{FINAL} {TUNED_SCHEME}"):
            if baseline in found:
                show_factors(baseline, found, arguments.store)
    if found:
        draw(found, arguments.folder / "frontier.png")


if __name__ == "__main__":
    main()
