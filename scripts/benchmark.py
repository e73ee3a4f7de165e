"""What a training step costs, beside what its networks cost by themselves: `python scripts/benchmark.py`.

Random weights of the true architectures, nothing to download: `toybox` (its own weights), `small` (a UNet of 25 million
weights), `sd15`, `sd21`, `sdxl`. All methods take one step a round, in turn, and each round measures the networks alone
too: a method's floor is the sum of the passes that it made. Prints tables; --store keeps
them in docs/results.

    python scripts/benchmark.py toybox small --rounds 5
    python scripts/benchmark.py small --parts decoder growth startup
    python scripts/benchmark.py sd15 --scorers aesthetic --batch 1 --rounds 1 --methods last_k
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import random_models
import rivals
import torch
from results import Column, Rows, new_parser, show
from study import SCHEME
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from textcraftor.cli import compose, register
from textcraftor.models.base import Branch
from textcraftor.models.layout import layouts
from textcraftor.rewards.total import RewardSum
from textcraftor.sampling import gradients, surrogates
from textcraftor.sampling.gradients import Rollout
from textcraftor.training.counting import LiveBytes, recomputing
from textcraftor.training.interrupt import Interrupt
from textcraftor.training.job import Job
from textcraftor.training.loop import tune
from textcraftor.training.phases import GB
from textcraftor.training.state import TrainingState
from textcraftor.training.train import load

SHAPES = {  # steps, guidance, side of the pictures in pixels, batch
    "toybox": (15, 3.0, 64, 8),
    "small": (20, 7.5, 256, 2),
    "sd15": (25, 7.5, 512, 4),
    "sd21": (25, 7.5, 768, 4),
    "sdxl": (25, 7.5, 1024, 1),
    "flux1_dev": (8, 3.5, 1024, 1),
    **{f"tiny-{layout}": (6, 3.0, 64, 2) for layout in layouts()},  # METHODS have 5 steps with a gradient
}
SCORERS = {"aesthetic": "ViT-L-14", "hpsv2": "ViT-H-14", "pickscore": "ViT-H-14", "clip": "ViT-L-14"}
SMALL_SCORERS = {"aesthetic": "ViT-B-32"}
RANDOM = ("model.load._target_=random_models.load_model",)
ALL = 1 << 30
PHASES = ("encode", "chain", "decode", "reward", "backward")
Table = tuple[list[Column], Rows]


@dataclass(frozen=True)
class Method:
    """A way to take a step.

    Args:
        rollout: a gradient policy, or a whole step of someone else's.
        kept, blocks, decoder: see `Plan`.
        results: pictures for each prompt that carry a gradient; 0: there is one, and it carries none.
        like: the method whose gradient this one has to have.
    """

    rollout: Rollout | Callable[[Job, int], tuple[int, int]]
    kept: int = 0
    blocks: bool = False
    decoder: bool = True
    dtype: str = "float32"
    compiled: bool = False
    rival: bool = False
    results: int = 1
    like: str | None = None


K5 = partial(gradients.last_k, k=5)
METHODS = {
    "full": Method(gradients.full),
    "full, kept": Method(gradients.full, ALL, like="full"),
    "full, by blocks": Method(gradients.full, blocks=True, like="full"),
    "last_k": Method(K5),
    "last_k, kept": Method(K5, ALL, like="last_k"),
    "last_k, by blocks, decoder again": Method(K5, blocks=True, decoder=False, like="last_k"),
    "last_k, kept, bfloat16": Method(K5, ALL, dtype="bfloat16", like="last_k"),
    "last_k, kept, compiled": Method(K5, ALL, compiled=True, like="last_k"),
    "random_k, kept": Method(partial(gradients.random_k, mean=0.84, sd=0.1), ALL),
    "low_variance, kept": Method(partial(gradients.low_variance, n=2), ALL, results=3),
    "refl, kept": Method(partial(gradients.refl, first=0.75, last=0.975), ALL),
    "drtune, kept": Method(partial(surrogates.drtune, k=5), ALL),
    "ddpo, 5 steps kept": Method(partial(gradients.ddpo, k=5), ALL, results=0),
    "AlignProp, re-created": Method(rivals.alignprop, rival=True),
    "TextCraftor, re-created": Method(rivals.textcraftor, rival=True, like="last_k"),
}


def load_shape(shape: str, arguments: argparse.Namespace, dtype: str, compiled: bool, keys: Sequence[str] = ()) -> Job:
    """The job that `textcraftor train` would run, with random weights in place of published ones.

    Args:
        keys: further ones of `train`.
    """
    steps, guidance, side, batch = SHAPES[shape]
    keys = [
        *keys,
        SCHEME,
        f"sampling={{steps: {steps}, guidance_scale: {guidance}, height: {side}, width: {side}}}",
        f"training.batch_size={arguments.batch or batch}",
        f"dtype={dtype}",
        f"compile={compiled}".lower(),
        f"device={arguments.device}",
        f"scorer_dtype={arguments.scorer_dtype}",
        "optim.lr=1e-9",
    ]
    if shape == "toybox":
        return load(compose("train", keys))
    if shape.startswith("tiny-"):  # with the toybox's scorer
        return load(compose("train", [*keys, *RANDOM, f"model.path={shape}", "rewards=aesthetic"]))
    keys += [*RANDOM, f"model.path={shape}", "rewards=clip"]
    job = load(compose("train", keys))
    architectures = SMALL_SCORERS if shape == "small" else {name: SCORERS[name] for name in arguments.scorers}
    rewards = {name: getattr(random_models, f"load_{name}")(of) for name, of in architectures.items()}
    job.rewards = RewardSum(rewards, dict.fromkeys(rewards, 1.0)).to(
        job.model.device, getattr(torch, arguments.scorer_dtype)
    )
    job.objective = replace(job.objective, rewards=job.rewards)
    return job


@contextlib.contextmanager
def timed(device: torch.device) -> Iterator[Callable[[], float]]:
    """Within, the device starts idle; the function that comes with it waits for it and tells the seconds."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    began = now()
    yield lambda: now() - began


class Stand:
    """One job on which several methods take their steps."""

    def __init__(self, job: Job) -> None:
        self.job, self.batch, self.device = job, job.pace.batch_size, job.model.device
        job.config.memory.budget = 1e6
        self.state: TrainingState = job.state()

    def step(self, method: Method) -> dict[str, float]:
        """One step of training as it always goes: its seconds, the phases' and the UNet's calls."""
        job, state = self.job, self.state
        if method.rival:
            with timed(self.device) as seconds:
                state.learn(0.0)
                calls, with_gradient = method.rollout(job, state.step)
                state.update(1.0)
                state.step += 1
                return {"denoiser_calls": calls, "gradient_steps": with_gradient, "seconds": seconds()}
        lines = list[dict[str, float]]()
        objective, pace = self.prepared(method), replace(job.pace, steps=state.step + 1)
        with contextlib.redirect_stderr(io.StringIO()):
            tune(
                objective, state, pace, lambda _, line: lines.append(line), lambda _: None, lambda _: None, Interrupt()
            )
        return lines[0]

    def prepared(self, method: Method):
        plan = self.state.plan
        self.state.plan = replace(
            plan, kept_steps=method.kept, blocks=method.blocks, decoder=method.decoder, micro_batch=self.batch
        )
        return replace(self.job.objective, rollout=method.rollout)

    def gradient(self, method: Method) -> tuple[Tensor, float]:
        """What learns gets this gradient in the first step, and the most bytes that exist beside what was there."""
        job, state = self.job, self.state
        state.step = 0
        state.learn(0.0)
        with self.peak() as peak:
            if method.rival:
                method.rollout(job, 0)
            else:
                objective = self.prepared(method)
                with recomputing(job.model, denoiser=method.blocks, decoder=not method.decoder):
                    objective.gradient(state, range(self.batch), self.batch, contextlib.nullcontext)
        return torch.cat([one.grad.flatten().double().cpu() for one in state.parameters]), peak()

    @contextlib.contextmanager
    def peak(self) -> Iterator[Callable[[], float]]:
        """The most bytes that tensors take beside those that were there: counted, on a GPU read."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            yield lambda: torch.cuda.max_memory_allocated() - before
        else:
            with LiveBytes() as live:
                yield lambda: live.peak

    def networks(self) -> dict[str, float]:
        """Seconds of one forward pass without a gradient, and of one forward and backward, of each network alone."""
        job, model = self.job, self.job.model
        prompts, seeds = job.objective.draw(0, self.batch)
        latents = model.noise(seeds, job.sampling.height, job.sampling.width)
        size = job.sampling.size
        said = model.encode(prompts, None, size=size).prompt.map(Tensor.detach)
        with torch.no_grad():
            images = model.decode(latents)
        t, both = torch.tensor(500), torch.cat([latents, latents])

        def denoise(embeds: Tensor) -> Tensor:
            one = replace(said, mixed={**said.mixed, "encoder_hidden_states": embeds})
            return model.predict(both.requires_grad_(), t, Branch.cat([one, one]))

        passes: dict[str, Callable[[Tensor], Tensor]] = {
            "unet": denoise,
            "decode": model.decode,
            "reward": lambda images: job.rewards.objective(job.rewards(images, prompts)),
        }
        inputs = {"unet": said.mixed["encoder_hidden_states"], "decode": latents, "reward": images}
        found = {}
        for name, work in passes.items():
            with torch.no_grad(), timed(self.device) as seconds:
                work(inputs[name].detach())
                found[name] = seconds()
            with timed(self.device) as seconds:
                work(inputs[name].detach().requires_grad_()).float().sum().backward()
                found[f"{name}, both ways"] = seconds()
        with timed(self.device) as seconds:
            encoder = next(reversed(model.readers))
            self.state.learn(0.0)
            said_again = model.encode(prompts, [None] * self.batch, encoder, size).prompt.mixed
            sum(one.sum() for one in said_again.values()).backward()
            found["encode, both ways"] = seconds()
        return found


def floor_of(method: Method, line: Mapping[str, float], seconds: Mapping[str, float]) -> float:
    """What the passes that a step made take by themselves."""
    calls, learning = line["denoiser_calls"], line["gradient_steps"]
    again = max(learning - method.kept, 0) + (learning if method.blocks else 0)
    total = (calls - learning + again) * seconds["unet"] + learning * seconds["unet, both ways"]
    total += seconds["encode, both ways"]
    if not method.results:
        return total + seconds["decode"] + seconds["reward"]
    decoding = seconds["decode, both ways"] + (0 if method.decoder else seconds["decode"])
    return total + method.results * (decoding + seconds["reward, both ways"])


def steps(shape: str, arguments: argparse.Namespace) -> dict[str, dict]:
    """Every method's figures."""
    chosen = {name: METHODS[name] for name in arguments.methods}
    stands = {
        kind: Stand(load_shape(shape, arguments, *kind))
        for kind in dict.fromkeys((method.dtype, method.compiled) for method in chosen.values())
    }
    figures: dict[str, dict] = {name: {"lines": [], "floors": []} for name in chosen}
    learned: dict[str, Tensor] = {}
    for name, method in chosen.items():  # warms up too
        learned[name], peak = stands[method.dtype, method.compiled].gradient(method)
        figures[name]["peak_gb"] = peak / GB
        if method.like in learned:
            figures[name]["cosine"] = float(torch.cosine_similarity(learned[name], learned[method.like], 0))
    del learned
    for _ in range(arguments.rounds):
        floors = {kind: stand.networks() for kind, stand in stands.items()}
        for name, method in chosen.items():
            line = stands[method.dtype, method.compiled].step(method)
            figures[name]["lines"].append(line)
            figures[name]["floors"].append(floor_of(method, line, floors[method.dtype, False]))
            figures[name]["alone"] = floors[method.dtype, method.compiled]
    return figures


def steps_table(figures: Mapping[str, Mapping]) -> Table:
    columns = ["method", "UNet calls, with gradient", ("s/step", ".2f"), ("of full", ".2f"), ("of its floor", ".2f")]
    columns += [("peak GB", ".2f"), ("gradient cosine", ".6f"), *((f"{phase} %", ".1f") for phase in PHASES)]
    first, rows = next(iter(figures.values())), []
    for name, found in figures.items():
        lines = found["lines"]
        seconds = [line["seconds"] for line in lines]
        calls = [sum(line[key] for line in lines) / len(lines) for key in ("denoiser_calls", "gradient_steps")]
        row = [
            name,
            f"{calls[0]:.1f}, {calls[1]:.1f}",
            {"mean": median(seconds), "low": min(seconds), "high": max(seconds)},
            median(now / one["seconds"] for now, one in zip(seconds, first["lines"], strict=True)),
            median(now / floor for now, floor in zip(seconds, found["floors"], strict=True)),
            found["peak_gb"],
            found.get("cosine"),
        ]
        for phase in PHASES:
            shares = [line[f"seconds/{phase}"] / line["seconds"] for line in lines if f"seconds/{phase}" in line]
            row.append(100 * median(shares) if shares else None)
        rows.append(row)
    return columns, rows


def decoder(shape: str, arguments: argparse.Namespace) -> dict[str, dict]:
    """The decoder's peak with its backward pass, by what it keeps."""
    stand = Stand(load_shape(shape, arguments, "float32", compiled=False))
    model, batch = stand.job.model, stand.batch
    noise = model.noise(range(batch), stand.job.sampling.height, stand.job.sampling.width)

    def each(latents: Tensor) -> Tensor:
        return torch.cat([checkpoint(model._decode, one, use_reentrant=False) for one in latents.split(1)])

    ways: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
        "everything kept": (model._decode, False),
        "the whole decoder again": (lambda latents: checkpoint(model._decode, latents, use_reentrant=False), False),
        "picture by picture": (each, False),
        "block by block": (model._decode, True),
        "both (the plan's)": (model.decode, True),
    }
    found = {}
    for name, (decode, blocks) in ways.items():
        with recomputing(model, decoder=blocks), stand.peak() as peak, timed(stand.device) as seconds:
            decode(noise.clone().requires_grad_()).sum().backward()
        found[name] = {"peak_gb": peak() / GB, "seconds": seconds()}
    return found


def decoder_table(found: Mapping[str, Mapping]) -> Table:
    kept = found["everything kept"]["peak_gb"]
    columns = ["what the decoder keeps", ("peak GB", ".3f"), ("of everything kept", ".2f")]
    return columns, [[name, one["peak_gb"], one["peak_gb"] / kept] for name, one in found.items()]


def growth(shape: str, arguments: argparse.Namespace) -> dict[str, dict]:
    """Peaks by the length of the chain, and what a step adds, in latents of the batch."""
    stand = Stand(load_shape(shape, arguments, "float32", compiled=False))
    latents = stand.job.model.noise(range(stand.batch), stand.job.sampling.height, stand.job.sampling.width)
    found = {}
    for name in ("last_k", "full"):
        peaks = {}
        for count in (5, 10, 20):
            sampling = replace(stand.job.sampling, steps=count)
            stand.job.objective = replace(stand.job.objective, sampling=sampling)
            peaks[count] = stand.gradient(METHODS[name])[1]
        slope = (peaks[20] - peaks[10]) / 10 / (latents.numel() * latents.element_size())
        found[name] = {"peak_gb": {count: peak / GB for count, peak in peaks.items()}, "latents_a_step": slope}
    return found


def growth_table(found: Mapping[str, Mapping]) -> Table:
    columns = ["every step computed again", ("GB at 5 steps", ".4f"), ("at 10", ".4f"), ("at 20", ".4f")]
    rows = [[name, *one["peak_gb"].values(), one["latents_a_step"]] for name, one in found.items()]
    return [*columns, ("latents a step", ".2f")], rows


def startup(shape: str, arguments: argparse.Namespace) -> dict[str, dict]:
    """Seconds from a new process to the list of commands, and to the first step of the toybox's default run."""
    ready = "from textcraftor.cli import *; from textcraftor.training.train import load; register(); "
    programs = {
        "textcraftor --help": ["-m", "textcraftor", "--help"],
        "textcraftor train --help": ["-m", "textcraftor", "train", "--help"],
        "ready for the first step": ["-c", f"{ready} load(compose('train', [])).state()"],
    }
    found = {}
    for name, program in programs.items():
        with timed(torch.device("cpu")) as seconds:
            subprocess.run([sys.executable, *program], check=True, capture_output=True)
        found[name] = {"seconds": seconds()}
    return found


def startup_table(found: Mapping[str, Mapping]) -> Table:
    return ["from a new process to", ("seconds", ".1f")], [[name, one["seconds"]] for name, one in found.items()]


PARTS = {
    "steps": (steps, steps_table),
    "decoder": (decoder, decoder_table),
    "growth": (growth, growth_table),
    "startup": (startup, startup_table),
}


def machine(device: str) -> str:
    cores = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return torch.cuda.get_device_name() if device == "cuda" else cores


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("shapes", nargs="*", default=["toybox", "small"], choices=[*SHAPES, []])
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--methods", nargs="*", default=[n for n, m in METHODS.items() if not m.compiled])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, help="prompts a step")
    parser.add_argument("--scorers", nargs="*", default=list(SCORERS), choices=SCORERS, help="of sd15, sd21 and sdxl")
    parser.add_argument("--scorer-dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if unknown := set(arguments.methods) - set(METHODS):
        parser.error(f"no such method: {', '.join(unknown)}; there are: {'; '.join(METHODS)}")
    register()
    for shape in arguments.shapes:
        for part in arguments.parts:
            if part == "startup" and shape != arguments.shapes[0]:
                continue
            work, table = PARTS[part]
            found = table(work(shape, arguments))
            show("step", f"{shape}: {part}", *found, arguments.store, device=machine(arguments.device))


if __name__ == "__main__":
    main()
