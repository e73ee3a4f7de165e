"""What a GPU has to answer, in one run of under nine minutes without a network: `python scripts/gpu_day.py`.

The most wanted part comes first. Each part's result is a JSON in docs/results/gpu (--folder), and a part that has its
result is left out, so that the same command goes on where it ended. --tiny takes small models, for the tests.

    python scripts/gpu_day.py --seconds 500
    python scripts/gpu_day.py --parts profile --again
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import benchmark
import torch
from benchmark import METHODS, Stand, load_shape, machine
from results import RESULTS
from torch.profiler import ProfilerActivity, profile, schedule

from textcraftor.cli import register
from textcraftor.errors import UsageError
from textcraftor.models.layout import layouts, read_layout
from textcraftor.training.interrupt import Interrupt
from textcraftor.training.job import Job
from textcraftor.training.loop import tune
from textcraftor.training.memory import plan_memory
from textcraftor.training.phases import GB, peak_gb
from textcraftor.training.state import TrainingState

BUDGETS = (24, 48, 80)  # GB
MOST_BATCH = 256
OURS = ("last_k, kept, bfloat16", "last_k", "TextCraftor, re-created", "AlignProp, re-created")
COMPILED = "last_k, kept, compiled"


@dataclass(frozen=True)
class Day:
    """What is asked.

    Args:
        tiny: small models, on whatever device there is.
    """

    device: str
    tiny: bool

    def arguments(self, **changed: object) -> argparse.Namespace:
        """Those of `scripts/benchmark.py`."""
        usual = {
            "batch": None,
            "scorers": list(benchmark.SCORERS),
            "scorer_dtype": "float32" if self.tiny else "bfloat16",
            "device": self.device,
            "rounds": 1 if self.tiny else 3,
            "methods": [],
        }
        return argparse.Namespace(**usual | changed)

    def shape(self, layout: str) -> str:
        return f"tiny-{layout}" if self.tiny else layout

    def job(self, layout: str, dtype: str, *keys: str, tiny: bool | None = None, **changed: object) -> Job:
        small = self.tiny if tiny is None else tiny
        shape = f"tiny-{layout}" if small else layout
        return load_shape(shape, self.arguments(**changed), dtype, compiled=False, keys=keys)


def trained(job: Job, count: int) -> dict[str, object]:
    """Some steps as `textcraftor train` takes them; of the last, seconds and phases; and the peak beside the plan's."""
    state, lines = job.state(), list[dict[str, float]]()
    pace = replace(job.pace, steps=count, watch_every=count + 1, checkpoint_every=count + 1)
    with contextlib.redirect_stderr(io.StringIO()):
        tune(
            job.objective, state, pace, lambda _, line: lines.append(line), lambda _: None, lambda _: None, Interrupt()
        )
    return {
        "plan": str(state.plan),
        "predicted_gb": state.plan.predicted / GB,
        "measured_gb": peak_gb(lines),
        "seconds": median(line["seconds"] for line in lines[1:] or lines),
        **lines[-1],
    }


def smoke(day: Day) -> dict[str, object]:
    """Every family, small, in both half precisions: one step of training with a gradient that is finite."""
    found: dict[str, object] = {}
    for layout in ["sd15"] if day.tiny else layouts():
        for dtype in ["bfloat16"] if day.tiny else ["bfloat16", "float16"]:
            try:
                line = trained(day.job(layout, dtype, *model_keys(layout), tiny=True), 1)
                found[f"{layout}, {dtype}"] = {key: line[key] for key in ("loss", "grad_norm", "seconds")}
            except Exception as error:
                found[f"{layout}, {dtype}"] = {"error": f"{type(error).__name__}: {error}"}
            free()
    return found


def step(day: Day) -> dict[str, object]:
    """SD 1.5 at 512 px, 25 steps, the last 5 with a gradient, batch 4, four scorers: against re-created steps of others
    and against the floor, with and without compilation; and the plan's own choice."""
    found: dict[str, object] = {}
    figures = benchmark.steps(day.shape("sd15"), day.arguments(methods=list(OURS[:1] if day.tiny else OURS)))
    columns, rows = benchmark.steps_table(figures)
    names = [column if isinstance(column, str) else column[0] for column in columns]
    found["methods"] = [dict(zip(names, row, strict=True)) for row in rows]
    free()
    found["planned"] = trained(day.job("sd15", "bfloat16"), 2)
    free()
    if not day.tiny:
        try:
            compiled = benchmark.steps("sd15", day.arguments(methods=[COMPILED], rounds=1))
            found["compiled"] = {name: one["lines"] for name, one in compiled.items()}
        except UsageError as error:
            found["compiled"] = str(error)
    return found


def batch(day: Day) -> dict[str, object]:
    """The largest batches of SD 1.5 that fit at once: as the plan predicts, the smallest of them measured too."""
    job, found = day.job("sd15", "bfloat16"), {}
    costs, parts = job.objective.costs(), job.model.placeable()
    for budget in BUDGETS[: 1 if day.tiny else None]:
        largest = 0
        for size in (2**power for power in range(MOST_BATCH.bit_length())):
            try:
                plan = plan_memory(budget, job.model.device, costs, size, 0.0, parts=parts)
            except UsageError:
                break
            if plan.micro_batch < size:
                break
            largest, last = size, str(plan)
        found[f"{budget} GB"] = {"batch": largest, "plan": last if largest else "not even one"}
    first = found[f"{BUDGETS[0]} GB"]["batch"]
    if not day.tiny and first:
        del job, costs
        free()
        found["measured"] = trained(day.job("sd15", "bfloat16", f"memory.budget={BUDGETS[0]}", batch=first), 1)
    return found


def large(day: Day) -> dict[str, object]:
    """SDXL at 1024 px with both text encoders, and a model of FLUX's size whose T5 learns by LoRA."""
    cases = {"sdxl": ["tune=text_encoders"], "flux1_dev": ["tune=text_encoder_2_lora"]}
    found: dict[str, object] = {}
    for layout, keys in list(cases.items())[: 1 if day.tiny else None]:
        try:
            job = day.job(layout, "bfloat16", *model_keys(layout), *keys, scorers=["aesthetic"])
            found[layout] = trained(job, 1 if day.tiny else 2)
            del job
        except Exception as error:
            found[layout] = {"error": f"{type(error).__name__}: {error}"}
        free()
    return found


def parity(day: Day) -> dict[str, object]:
    """The gradient of a small model in float32 on this device beside the CPU's."""
    gradients = [
        Stand(replace(day, device=device).job("sd15", "float32", tiny=True)).gradient(METHODS["last_k"])[0]
        for device in ("cpu", day.device)
    ]
    return {
        "cosine": float(torch.cosine_similarity(*gradients, 0)),
        "relative_difference": float((gradients[0] - gradients[1]).norm() / gradients[0].norm()),
    }


def profiled(day: Day) -> dict[str, object]:
    """Which operations the slowest phase of a step of SD 1.5 spends its time in."""
    job = day.job("sd15", "bfloat16")
    state: TrainingState = job.state()
    lines, activities = list[dict[str, float]](), [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if day.device == "cuda" else []
    with profile(activities=activities, schedule=schedule(wait=0, warmup=1, active=1)) as trace:

        def log(_: int, line: dict[str, float]) -> None:
            lines.append(line)
            if len(lines) < 2:
                trace.step()

        pace = replace(job.pace, steps=2, watch_every=3, checkpoint_every=3)
        with contextlib.redirect_stderr(io.StringIO()):
            tune(job.objective, state, pace, log, lambda _: None, lambda _: None, Interrupt())
    phases = {key: value for key, value in lines[-1].items() if key.startswith("seconds/")}
    by = "self_device_time_total" if day.device == "cuda" else "self_cpu_time_total"
    slowest = sorted(trace.key_averages(), key=lambda one: -getattr(one, by))[:20]
    return {
        "phases": phases,
        "slowest_phase": max(phases, key=lambda key: phases[key]),
        "operations": [{"name": one.key, "calls": one.count, "ms": getattr(one, by) / 1e3} for one in slowest],
    }


def model_keys(layout: str) -> list[str]:
    """What a flow model needs beside the toybox's configuration, whose prompts and scorers need no network."""
    is_flow = read_layout(layout)["scheduler"]["_class_name"].startswith("Flow")
    return ["model.sampling.scheduler=euler"] if is_flow else []


def free() -> None:
    """Give back what a part held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# The most wanted first, each with the seconds that it needs on an H100.
PARTS: dict[str, tuple[Callable[[Day], dict[str, object]], int]] = {
    "smoke": (smoke, 60),
    "step": (step, 150),
    "batch": (batch, 60),
    "large": (large, 120),
    "parity": (parity, 20),
    "profile": (profiled, 40),
}


def wanted(names: Sequence[str], folder: Path, again: bool) -> Iterator[str]:
    """The parts that have no result yet, or an error for one."""
    for name in names:
        file = folder / f"{name}.json"
        if again or not file.exists() or "error" in json.loads(file.read_text()):
            yield name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--seconds", type=float, default=520.0, help="no part begins that would end later")
    parser.add_argument("--folder", type=Path, default=RESULTS / "gpu")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--again", action="store_true", help="also parts that have their result")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("there is no GPU: --tiny tries the script out")
    register()
    began, day = time.monotonic(), Day(arguments.device, arguments.tiny)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in wanted(arguments.parts, arguments.folder, arguments.again):
        work, needed = PARTS[name]
        if time.monotonic() - began + needed > arguments.seconds and not arguments.tiny:
            print(f"{name}: no time left for it; the same command goes on")
            continue
        started = time.monotonic()
        try:
            result = work(day)
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        about = {"device": machine(day.device), "tiny": day.tiny, "torch": torch.__version__}
        result |= {**about, "took": time.monotonic() - started}
        (arguments.folder / f"{name}.json").write_text(json.dumps(result, indent=1, default=float) + "\n")
        print(f"{name}: {result['took']:.0f} s; {arguments.folder / name}.json", flush=True)
        free()


if __name__ == "__main__":
    main()
