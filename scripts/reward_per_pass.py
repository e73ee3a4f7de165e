"""What a pass through the UNet buys: `python scripts/reward_per_pass.py`.

All runs spend the same number of UNet passes, as many steps as that takes, and are looked at on the way, on prompts
that they never learn from. `single` changes one setting of TextCraftor's scheme at a time; `search` looks for the
best settings twice with as many trials, once within the scheme (learning rate, averaging, batch) and once among
everything; `final` gives both winners twice the passes. Prints tables and draws runs/per_pass/frontier.png. Finished
runs are skipped and unfinished ones resumed; on a few cores two of these side by side on different --parts or --seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
from study import JUDGE, SEEDS, train

from textcraftor.sampling.gradients import steps_between

PASSES = 12_000  # of single samples: guidance makes a call two, a gradient makes a call three
WATCHED = ("watch.prompts=24", "evaluation.prompts=24", "evaluation.seeds=[0]")
SCHEME = {"gradient": "last_k", "gradient.k": 5, "optim.lr": 3e-4}  # TextCraftor's, its learning rate from the sweep
CHAIN, GUIDANCE, BATCH = 15, 3.0, 8  # of the toybox
FIRST, LAST = 0.75, 0.975  # of ReFL
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
}
WITHIN = {
    "optim.lr": [1e-4, 2e-4, 3e-4, 5e-4, 1e-3],
    "training.ema_decay": [0.0, 0.9, 0.95],
    "training.batch_size": [2, 4, 8, 16],
}
AMONG = WITHIN | {
    "gradient": ["last_k", "low_variance", "refl", "drtune"],
    "gradient.k": [1, 2, 3, 5],
    "gradient.jumps": [1, 2, 4],
    "gradient.first": [0.5, 0.75],
    "training.sampling.steps": [5, 6, 8, 10, 15],
    "training.sampling.guidance_scale": [1.0, 2.0, 3.0],
}


SPACES = {"within the scheme": WITHIN, "among everything": AMONG}


def settled(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The scheme with some settings changed; what its policy does not know is left out, and no step is taken twice."""
    found = SCHEME | dict(keys)
    steps, policy = found.get("training.sampling.steps", CHAIN), found["gradient"]
    if policy in ("last_k", "drtune"):
        found["gradient.k"] = min(found["gradient.k"], steps)
    elif policy == "refl":
        late = len(steps_between(steps, found.get("gradient.first", FIRST), LAST))
        found["gradient.jumps"] = min(found.get("gradient.jumps", 1), late)
    known = {"last_k": ("k",), "drtune": ("k",), "refl": ("jumps", "first")}.get(policy, ())
    return {
        key: value for key, value in found.items() if key.removeprefix("gradient.") in known or "gradient." not in key
    }


def passes_of(keys: Mapping[str, Any], calls: float, learning: float) -> float:
    """UNet passes of a step with so many calls, so many of them with a gradient."""
    guided = 2 if keys.get("training.sampling.guidance_scale", GUIDANCE) != 1 else 1
    return keys.get("training.batch_size", BATCH) * guided * (calls + 2 * learning)


def cost_of(keys: Mapping[str, Any]) -> float:
    """UNet passes of one optimiser step, as expected of policies that draw."""
    steps, k = keys.get("training.sampling.steps", CHAIN), keys.get("gradient.k", 5)
    jumps, first = keys.get("gradient.jumps", 1), keys.get("gradient.first", FIRST)
    calls, learning = {
        "last_k": (steps, k),
        "drtune": (steps, k),
        "full": (steps, steps),
        "ddpo": (steps, steps),
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
    """

    passes: np.ndarray
    seconds: np.ndarray
    held_out: np.ndarray
    judge: np.ndarray


class Bench:
    """Runs below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, name: str, keys: Mapping[str, Any], seed: int, passes: float, looks: int = 2) -> Curve:
        keys = settled(keys)
        steps = max(looks, round(passes / cost_of(keys)))
        watched = (*WATCHED, f"watch.every={-(-steps // looks)}")
        place = self.folder / f"{name.replace(' ', '_').replace(',', '')}_{seed}"
        overrides = [f"{key}={value}" for key, value in keys.items()]
        summary = train(place, *overrides, *watched, f"training.steps={steps}", f"seed={seed}")
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        each = [passes_of(keys, line["unet_calls"], line["gradient_steps"]) for line in lines]
        spent = np.cumsum([0.0, *each])
        seconds = np.cumsum([0.0, *(line["seconds"] for line in lines)])
        points = summary["watched"]
        at = [point["step"] for point in points]
        judged = [np.mean([point[name] - points[0][name] for name in JUDGE]) for point in points]
        return Curve(spent[at], seconds[at], np.array([point["held_out"] for point in points]), np.array(judged))

    def curves(self, name: str, keys: Mapping[str, Any], passes: float, looks: int = 2) -> list[Curve]:
        return [self.run(name, keys, seed, passes, looks) for seed in SEEDS]

    def search(self, name: str, space: Mapping[str, list], trials: int) -> dict[str, Any]:
        """The settings with the highest held-out figure at half the passes, kept in a file between calls."""
        storage = f"sqlite:///{self.folder / 'search.db'}"
        self.folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=0),
        )

        def objective(trial: optuna.Trial) -> float:
            keys = {key: trial.suggest_categorical(key, choices) for key, choices in space.items()}
            return float(self.run(f"{name}_{trial.number}", keys, 0, PASSES / 2).held_out.max())

        done = [trial for trial in study.trials if trial.state.is_finished()]
        study.optimize(objective, max(0, trials - len(done)))
        return study.best_trial.params


def mean_of(curves: list[Curve], field: str) -> np.ndarray:
    return np.mean([getattr(curve, field) for curve in curves], 0)


def print_table(found: Mapping[str, list[Curve]]) -> None:
    print("| setting | UNet passes | seconds | held_out | judge |\n|" + " --- |" * 5)
    for name, curves in found.items():
        ends = {field: [getattr(curve, field)[-1] for curve in curves] for field in ("held_out", "judge")}
        cells = [f"{np.mean(values):+.3f} ({np.std(values, ddof=1):.3f})" for values in ends.values()]
        spent = [f"{mean_of(curves, field)[-1]:.0f}" for field in ("passes", "seconds")]
        print(f"| {name} | {' | '.join([*spent, *cells])} |")
    print(flush=True)


def print_factor(scheme: list[Curve], best: list[Curve]) -> None:
    """How much sooner the mean curve of `best` reaches what that of the scheme reaches at most."""
    goal = mean_of(scheme, "held_out").max()
    for field in ("passes", "seconds"):
        spent = []
        for curves in (scheme, best):
            heights, costs = np.maximum.accumulate(mean_of(curves, "held_out")), mean_of(curves, field)
            first = int(np.argmax(heights >= goal))
            if heights[first] < goal:
                print(f"the best setting does not reach the scheme's {goal:+.3f}")
                return
            spent.append(float(np.interp(goal, heights[: first + 1], costs[: first + 1])))
        ratio = f"{spent[0] / spent[1]:.1f} times less"
        print(f"held_out {goal:+.3f}: {spent[0]:.0f} {field} by the scheme, {spent[1]:.0f} by the best: {ratio}")


def draw(found: Mapping[str, list[Curve]], file: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, panels = pyplot.subplots(1, 2, figsize=(13, 6), layout="constrained")
    for axes, field, label in zip(panels, ("held_out", "judge"), ("held-out reward, sd", "judge"), strict=True):
        for index, (name, curves) in enumerate(found.items()):
            style = {"color": pyplot.get_cmap("tab20")(index % 20), "linestyle": "-" if index < 20 else "--"}
            axes.plot(mean_of(curves, "passes"), mean_of(curves, field), label=name, **style)
        axes.set_xlabel("UNet passes")
        axes.set_ylabel(f"{label}, change")
    panels[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    canvas.savefig(file, dpi=120)
    pyplot.close(canvas)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/per_pass"))
    parser.add_argument(
        "--parts", nargs="*", default=["single", "search", "final"], choices=["single", "search", "final"]
    )
    parser.add_argument("--settings", nargs="*", default=list(SINGLE), choices=SINGLE)
    parser.add_argument("--spaces", nargs="*", default=list(SPACES), choices=SPACES)
    parser.add_argument("--trials", type=int, default=20)
    arguments = parser.parse_args()
    bench, found = Bench(arguments.folder), dict[str, list[Curve]]()
    if "single" in arguments.parts:
        found |= {name: bench.curves(name, SINGLE[name], PASSES) for name in arguments.settings}
        print_table(found)
    if "search" in arguments.parts or "final" in arguments.parts:
        best = {name: bench.search(name, SPACES[name], arguments.trials) for name in arguments.spaces}
        for name, keys in best.items():
            print(f"best of {arguments.trials} {name}: {' '.join(f'{key}={value}' for key, value in keys.items())}\n")
    if "final" in arguments.parts:
        final = {name: bench.curves(f"final {name}", keys, 2 * PASSES, looks=12) for name, keys in best.items()}
        print_table(final)
        print_factor(*final.values())
        found |= final
    if found:
        draw(found, arguments.folder / "frontier.png")


if __name__ == "__main__":
    main()
