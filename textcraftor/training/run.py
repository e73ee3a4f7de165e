"""A run: from configuration to one folder with everything that it found."""

from __future__ import annotations

import copy
import json
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from textcraftor.data.prompts import PromptDraw, read_prompts
from textcraftor.errors import UsageError
from textcraftor.evaluation.evaluate import Evaluation, compare, evaluate
from textcraftor.evaluation.report import before_after_sheet, write_report
from textcraftor.inference.generate import Sampling
from textcraftor.inference.pictures import contact_sheet, to_pil
from textcraftor.models.loading import dtype_of, load_model
from textcraftor.models.stable_diffusion import StableDiffusion
from textcraftor.models.tuning import save_text_encoder
from textcraftor.rewards.mix import check_mix, load_mix, parts_of
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.training.reward_tuning import RewardTuning, tune_by_reward


def split_prompts(config: DictConfig) -> tuple[list[str], list[str], list[str]]:
    """Prompts to train on, to evaluate with and to watch, which never overlap.

    The last two come from `prompts.held_out` where that is given, else from the end of `prompts.path`.
    """
    wanted, watched = config.evaluation.prompts, config.evaluation.watch
    prompts = list(dict.fromkeys(read_prompts(config.prompts.path)))
    if config.prompts.held_out:
        held_out = list(dict.fromkeys(read_prompts(config.prompts.held_out)))[: wanted + watched]
        prompts = [prompt for prompt in prompts if prompt not in set(held_out)]
    else:
        count = min(wanted + watched, len(prompts) // 2)
        prompts, held_out = prompts[: len(prompts) - count], prompts[len(prompts) - count :]
    if not prompts or len(held_out) < 2:
        raise UsageError(
            f"prompts.path={config.prompts.path}: too few different prompts; 4 are needed, 2 of them held out"
        )
    share = max(1, min(watched, len(held_out) // 2))
    return prompts, held_out[:-share], held_out[-share:]


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot work before any model is loaded and before anything is written."""
    steps = config.sampling.steps
    k = config.gradient.get("k")
    if k is not None and not 1 <= k <= steps:
        raise UsageError(
            f"gradient.k={k} must lie between 1 and sampling.steps={steps}: lower gradient.k or use gradient=full"
        )
    if config.conditioning.tuned_on == "last_n" and not 1 <= config.conditioning.n <= steps:
        raise UsageError(f"conditioning.n={config.conditioning.n} must lie between 1 and sampling.steps={steps}")
    for name in ("steps", "batch_size"):
        if config.training[name] < 1:
            raise UsageError(f"training.{name}={config.training[name]} must be at least 1")
    check_mix(config.rewards)
    if not any(part.weight for part in parts_of(config.rewards).values()):
        raise UsageError("rewards: every weight is 0, so there is nothing to learn from")
    for key in ("dtype", "scorer_dtype"):
        dtype_of(config, key)
    split_prompts(config)
    if (folder / "summary.json").exists():
        raise UsageError(f"run_dir={folder} holds a finished run: choose another run_dir= or name=, or delete it")


def peak_memory_gb() -> float:
    """Peak memory of this process: of the GPU where one is used, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Stopwatch:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 2), now


class MetricsFile:
    """One JSON line per step, and the same figures to the tracker."""

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self.path, self.accelerator = path, accelerator
        self.lines: list[dict[str, float]] = []

    def write(self, step: int, figures: dict[str, float]) -> None:
        self.lines.append({"step": step, **figures})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")
        self.accelerator.log(figures, step=step)


class Watch:
    """Looks at held-out prompts during training: keeps the figures, a strip of pictures and the best encoder.

    Its prompts are neither trained on nor in the final evaluation, so choosing the best does not flatter it.
    """

    def __init__(self, look: Callable[[], Evaluation], model: StableDiffusion, folder: Path) -> None:
        self.look, self.model, self.folder = look, model, folder
        self.points: list[dict[str, float]] = []
        self.best_state: dict[str, torch.Tensor] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, step: int) -> None:
        seen = self.look()
        point = {"step": step, **seen.means()}
        if all(point["total"] > other["total"] for other in self.points):
            self.best_state = copy.deepcopy(self.model.text_encoders["tuned"].state_dict())
        self.points.append(point)
        contact_sheet([[to_pil(image) for image in seen.images[:, 0]]]).save(self.folder / f"step_{step:06d}.png")


def run(config: DictConfig, folder: Path) -> float:
    """Evaluate, tune, evaluate again, report. Returns the held-out total after tuning, for sweeps."""
    check(config, folder)
    clock = Stopwatch()
    train_prompts, held_out, watched = split_prompts(config)
    torch.manual_seed(config.seed)
    model = load_model(config)
    model.check_prompts([*train_prompts, *held_out, *watched, config.sampling.negative_prompt])
    mix = load_mix(config.rewards, config.normalize_rewards).to(model.device)
    mix.rewards.to(dtype_of(config, "scorer_dtype"))
    mix.check([*train_prompts, *held_out, *watched])
    judge = instantiate(config.model.judge)
    sampling = Sampling(**config.sampling)
    schedule = ConditioningSchedule.tuned_on(
        config.conditioning.tuned_on, config.conditioning.n, model.timesteps(sampling.steps)
    )
    seeds = tuple(config.evaluation.seeds)
    look = partial(evaluate, model, sampling=sampling, mix=mix, judge=judge, batch_size=config.evaluation.batch_size)

    OmegaConf.save(config, folder / "config.yaml", resolve=True)
    clock.lap("load")
    before = look(schedule=ConditioningSchedule.original(), prompts=held_out, seeds=seeds)
    if config.normalize_rewards:
        scores = {name: torch.from_numpy(before.measures[name].ravel()).to(model.device) for name in mix.rewards}
        mix.start(scores)
        before.measures["total"] = mix.total(scores).cpu().numpy().reshape(len(held_out), len(seeds))
    clock.lap("before")

    accelerator = Accelerator(cpu=model.device.type == "cpu", log_with=config.tracker, project_dir=folder)
    accelerator.init_trackers("tensorboard")
    metrics = MetricsFile(folder / "metrics.jsonl", accelerator)
    watch = Watch(partial(look, schedule=schedule, prompts=watched, seeds=seeds[:1]), model, folder / "samples")
    encoder = tune_by_reward(
        model,
        mix,
        instantiate(config.gradient),
        schedule,
        sampling,
        PromptDraw(train_prompts, config.seed),
        instantiate(config.optim),
        RewardTuning(**config.training),
        accelerator,
        metrics.write,
        watch,
    )
    accelerator.end_training()
    save_text_encoder(encoder, folder / "last" / "text_encoder")
    encoder.load_state_dict(watch.best_state)
    save_text_encoder(encoder, folder / "text_encoder")
    (folder / "conditioning.json").write_text(json.dumps(schedule.to_dict(), indent=2))
    clock.lap("tuning")
    after = look(schedule=schedule, prompts=held_out, seeds=seeds)
    clock.lap("after")

    summary = {
        "before": before.means(),
        "after": after.means(),
        "difference": compare(before, after),
        "prompts": len(held_out),
        "seeds": seeds,
        "steps": config.training.steps,
        "batch_size": config.training.batch_size,
        "conditioning": schedule.to_dict(),
        "watched": watch.points,
        "seconds": clock.laps | {"total": sum(clock.laps.values())},
        "peak_memory_gb": peak_memory_gb(),
    }
    before_after_sheet(before, after, rows=8).save(folder / "before_after.png")
    yaml = (folder / "config.yaml").read_text()
    write_report(folder / "report.html", f"TextCraftor: {folder.name}", summary, metrics.lines, before, after, yaml)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    return summary["after"]["total"]
