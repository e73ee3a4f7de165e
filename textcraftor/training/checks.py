"""What cannot work is refused before any model is loaded and before anything is written."""

from __future__ import annotations

from pathlib import Path

from accelerate.tracking import get_available_trackers
from diffusers.optimization import SchedulerType
from omegaconf import DictConfig

from textcraftor.data.prompts import read_prompts, split_held_out
from textcraftor.errors import UsageError, at_least, check_seeds
from textcraftor.inference.generate import Sampling
from textcraftor.inference.mix import Mix, check_base
from textcraftor.models.loading import device_of, dtype_of
from textcraftor.rewards.total import check_rewards, parts_of
from textcraftor.sampling.gradients import steps_between
from textcraftor.training.checkpoint import Checkpoints
from textcraftor.training.pictures import check_pictures

LR_SCHEDULES = [one.value for one in SchedulerType if one is not SchedulerType.PIECEWISE_CONSTANT]
LEAST = {
    "training.steps": 1,
    "training.batch_size": 1,
    "training.checkpoint_every": 1,
    "training.keep_checkpoints": 1,
    "training.warmup": 0,
    "training.skip_broken": 0,
    "watch.every": 1,
    "watch.prompts": 1,
    "evaluation.prompts": 1,
    "evaluation.batch_size": 1,
    "seed": 0,
}


def split_prompts(config: DictConfig) -> tuple[list[str], list[str], list[str]]:
    """Prompts to train on, to evaluate with and to watch, which never overlap.

    The last two come from `prompts.held_out` where that is given, else from the end of `prompts.path`.
    """
    prompts = list(dict.fromkeys(read_prompts(config.prompts.path)))
    if config.prompts.held_out:
        held_out = list(dict.fromkeys(read_prompts(config.prompts.held_out)))
    else:
        count = min(config.evaluation.prompts + config.watch.prompts, len(prompts) // 2)
        held_out = prompts[len(prompts) - count :]
    evaluated, watched = split_held_out(held_out, config.evaluation.prompts, config.watch.prompts)
    apart = {*evaluated, *watched}
    prompts = [prompt for prompt in prompts if prompt not in apart]
    if not prompts or len(held_out) < 2:
        raise UsageError(
            f"prompts.path={config.prompts.path}: too few different prompts; 4 are needed, 2 of them held out"
        )
    return prompts, evaluated, watched


def check(config: DictConfig, folder: Path) -> None:
    """Refuse a configuration of `train` with the value, the rule and the remedy."""
    _check_gradient(config)
    if not any(part.weight for part in parts_of(config.rewards).values()):
        raise UsageError("rewards: every weight is 0, so there is nothing to learn from")
    if from_pictures(config):
        check_pictures(config)
    elif config.prompts.path or not config.dry_run:
        split_prompts(config)
    check_tuning(config, folder)


def from_pictures(config: DictConfig) -> bool:
    """Whether the policy starts from real pictures instead of noise."""
    return config.gradient._target_.rpartition(".")[2] == "direct"


def check_tuning(config: DictConfig, folder: Path) -> None:
    """What every tuning run needs, whatever it learns from."""
    Sampling(**config.sampling)
    _check_tune(config)
    at_least(config, LEAST)
    check_seeds("evaluation.seeds", config.evaluation.seeds)
    check_seeds("watch.seeds", config.watch.seeds)
    if config.training.lr_schedule not in LR_SCHEDULES:
        raise UsageError(f"training.lr_schedule={config.training.lr_schedule} must be one of {', '.join(LR_SCHEDULES)}")
    if not config.training.max_grad_norm > 0:
        raise UsageError(f"training.max_grad_norm={config.training.max_grad_norm} must be above 0")
    if not 0 <= config.training.ema_decay < 1:
        raise UsageError(f"training.ema_decay={config.training.ema_decay} must lie in [0, 1)")
    if config.memory.budget != "auto" and not (
        isinstance(config.memory.budget, int | float) and config.memory.budget > 0
    ):
        raise UsageError(f"memory.budget={config.memory.budget} must be auto or a number of GB")
    if isinstance(config.stop_on, str):
        raise UsageError(f"stop_on={config.stop_on} must be a list, as stop_on=[{config.stop_on}]")
    if unknown := sorted(set(config.stop_on) - set(config.watch.alarms)):
        raise UsageError(f"stop_on={unknown[0]} names no alarm; watch.alarms has {', '.join(config.watch.alarms)}")
    trackers = sorted(str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers())
    if config.tracker is not None and config.tracker not in trackers:
        raise UsageError(f"tracker={config.tracker} is not installed; there are {', '.join(trackers)}, or null")
    check_rewards(config.rewards)
    device_of(config.device)
    for key in ("dtype", "scorer_dtype"):
        dtype_of(config, key)
    if config.resume:
        Checkpoints(folder, 1).check_resume(config.training.steps)
    elif (folder / "summary.json").exists():
        raise UsageError(f"run_dir={folder} holds a finished run: choose another run_dir= or name=, or delete it")
    elif (folder / "checkpoints").exists():
        raise UsageError(
            f"run_dir={folder} holds an unfinished run: resume={folder} goes on with it; or choose another run_dir="
        )


def _check_gradient(config: DictConfig) -> None:
    steps = Sampling(**{**config.sampling, **config.training.sampling}).steps
    k = config.gradient.get("k")
    if k is not None and not 1 <= k <= steps:
        raise UsageError(
            f"gradient.k={k} must lie between 1 and training.sampling.steps={steps}: lower it or use gradient=full"
        )
    n = config.gradient.get("n")
    if n is not None and n < 1:
        raise UsageError(f"gradient.n={n} must be at least 1: gradient=last_k gradient.k=1 is the same without noise")
    first, last = float(config.gradient.get("first", 0)), float(config.gradient.get("last", 1))
    if not 0 <= first <= last <= 1:
        raise UsageError(f"gradient.first={first} and gradient.last={last} must rise within [0, 1]")
    late = len(steps_between(steps, first, last))
    if not 1 <= (jumps := config.gradient.get("jumps", 1)) <= late:
        raise UsageError(
            f"gradient.jumps={jumps} must lie between 1 and {late}, the steps from gradient.first to gradient.last"
        )
    mean, sd = config.gradient.get("mean", 0), config.gradient.get("sd", 0)
    if not 0 <= mean <= 1 or sd < 0:
        raise UsageError(f"gradient.mean={mean} is a share of the chain, within [0, 1]; gradient.sd={sd} at least 0")
    policy = config.gradient._target_.rpartition(".")[2]
    if policy == "ddpo" and config.sampling.scheduler != "ddim":
        raise UsageError(
            f"sampling.scheduler={config.sampling.scheduler}: gradient=ddpo draws its steps, which ddim alone can do"
        )
    if config.conditioning.tuned_on not in ("all", "last_n"):
        raise UsageError(f"conditioning.tuned_on={config.conditioning.tuned_on} must be all or last_n")
    if config.conditioning.tuned_on == "last_n":
        _check_last_n(config, steps)


def _check_last_n(config: DictConfig, steps: int) -> None:
    """Whatever a policy draws, the tuned encoder must condition a step of training that carries a gradient."""
    n, policy, k = config.conditioning.n, config.gradient._target_.rpartition(".")[2], config.gradient.get("k") or steps
    total = config.sampling.steps
    if not 1 <= n <= total:
        raise UsageError(f"conditioning.n={n} must lie between 1 and sampling.steps={total}")
    jump = steps - round(steps * config.gradient.get("first", 0))
    needed = {
        "refl": jump,
        "direct": jump,
        "drtune": -(-steps // k),
        "ddpo": steps - k + 1,
    }.get(policy, 1)
    needed = -(-needed * total // steps)  # training may take other steps than those that n counts
    if n < needed and config.tune.get("denoiser") is None:
        raise UsageError(
            f"conditioning.n={n}: gradient={policy} may put its gradient where the tuned encoder has no say; "
            f"conditioning.n must be at least {needed} here"
        )


def _check_tune(config: DictConfig) -> None:
    chosen = [part for part, options in config.tune.items() if part != "lr" and options is not None]
    if not chosen:
        raise UsageError("tune names nothing to learn: choose tune=text_encoder, denoiser, both, or a form with _lora")
    for part in chosen:
        options = config.tune[part]
        if not options.lr > 0:
            raise UsageError(f"tune.{part}.lr={options.lr} must be above 0")
        start, end = options.span
        if not 0 <= start < end <= 1:
            raise UsageError(f"tune.{part}.span={list(options.span)} must be a share of the steps, within [0, 1]")
        at_least(config, {f"tune.{part}.lora.rank": 1})
    spans = sorted(tuple(config.tune[part].span) for part in chosen)
    if spans[0][0] > 0 or max(end for _, end in spans) < 1 or (len(spans) > 1 and spans[1][0] > spans[0][1]):
        raise UsageError(f"tune: the spans {spans} leave steps in which nothing learns; they must cover [0, 1]")
    if len(config.tuned) > 1:
        raise UsageError(f"tuned names {len(config.tuned)} runs ({', '.join(config.tuned)}): training starts from one")
    Mix(dict(config.tuned))
    check_base(config.tuned, config)
