"""What cannot work is refused before any model is loaded and before anything is written."""

from __future__ import annotations

from pathlib import Path

from accelerate.tracking import get_available_trackers
from omegaconf import DictConfig

from textcraftor.config.making import made
from textcraftor.config.resume import AUTO
from textcraftor.data.prompt_files import Say, given_prompts, is_given, place_of, read_prompts
from textcraftor.data.prompts import split_held_out
from textcraftor.errors import UsageError
from textcraftor.files.writing import check_unfinished, is_finished
from textcraftor.inference.generate import Sampling
from textcraftor.inference.mix import Mix, check_base
from textcraftor.models.loading import device_of, dtype_of
from textcraftor.models.quantizing import check_quantize
from textcraftor.rewards.total import check_rewards, judged_by_readers, parts_of
from textcraftor.sampling.needs import needs_of
from textcraftor.training.checkpoint import Checkpoints
from textcraftor.training.pictures import check_pictures
from textcraftor.training.rates import SCHEDULES, WITH_CYCLES


def split_prompts(config: DictConfig, say: Say | None = None) -> tuple[list[str], list[str], list[str]]:
    """Prompts to train on, to evaluate with and to watch, which never overlap.

    The last two come from `prompts.held_out` where that is given, else from the end of the others. Where a scorer
    reads, at least a third of those watched quote text, as far as there are such prompts.

    Args:
        say: prints how many prompts each file holds.
    """
    prompts, spare = given_prompts(config.prompts, say), list[str]()
    if config.prompts.held_out:
        held_out = read_prompts(config.prompts.held_out, config.prompts.column, "prompts.held_out", say)
    else:
        count = min(config.evaluation.prompts + config.watch.prompts, len(prompts) // 2)
        spare, held_out = prompts[: len(prompts) - count], prompts[len(prompts) - count :]
    sizes = config.evaluation.prompts, config.watch.prompts
    evaluated, watched = split_held_out(held_out, *sizes, spare, judged_by_readers(config.rewards))
    apart = {*evaluated, *watched}
    prompts = [prompt for prompt in prompts if prompt not in apart]
    if not prompts or len(held_out) < 2:
        raise UsageError(f"{place_of(config.prompts)}: too few different prompts; 4 are needed, 2 of them held out")
    return prompts, evaluated, watched


def check(config: DictConfig, folder: Path) -> None:
    """Refuse a configuration of `train` with the value, the rule and the remedy."""
    _check_gradient(config)
    if not any(part.weight for part in parts_of(config.rewards).values()):
        raise UsageError("rewards: every weight is 0, so there is nothing to learn from")
    if from_pictures(config):
        check_pictures(config)
    elif config.data.path is not None:
        raise UsageError(
            f"data.path={config.data.path}: this gradient starts from noise, not from pictures: leave it out"
        )
    elif is_given(config.prompts) or not config.dry_run:
        split_prompts(config)
    check_tuning(config, folder)


def from_pictures(config: DictConfig) -> bool:
    """Whether the policy starts from real pictures instead of noise."""
    return needs_of(made(config.gradient)).pictures


def settle_resume(config: DictConfig, folder: Path) -> None:
    """What `resume=auto` means here: to go on with the run in the folder, or to begin where there is none."""
    if config.resume == AUTO:
        begun = (folder / "config.yaml").exists() and not is_finished(folder)
        config.resume = str(folder) if begun else None


def check_tuning(config: DictConfig, folder: Path) -> None:
    """What every tuning run needs, whatever it learns from."""
    settle_resume(config, folder)
    Sampling(**config.sampling)
    _check_tune(config)
    _check_rates(config.training)
    alarms = [name for name, limits in config.watch.alarms.items() if limits is not None]
    if unknown := sorted(set(config.stop_on) - set(alarms)):
        raise UsageError(f"stop_on={unknown[0]} names no alarm; watch.alarms has {', '.join(alarms)}")
    trackers = sorted(str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers())
    if config.tracker is not None and config.tracker not in trackers:
        raise UsageError(f"tracker={config.tracker} is not installed; there are {', '.join(trackers)}, or null")
    check_rewards(config, training=True)
    device_of(config.device)
    for key in ("dtype", "scorer_dtype"):
        dtype_of(config, key)
    check_quantize(config.quantize)
    if config.resume:
        Checkpoints(folder, 1).check_resume(config.training.steps)
        return
    check_unfinished(folder, "a finished run")
    if (folder / "config.yaml").exists():
        raise UsageError(
            f"run_dir={folder} holds an unfinished run: resume={folder} goes on with it; or choose another run_dir="
        )


def _check_gradient(config: DictConfig) -> None:
    """What the policy says that it needs; its name is that of the function."""
    steps, policy = Sampling(**{**config.sampling, **config.training.sampling}).steps, made(config.gradient)
    needed, name = needs_of(policy), config.gradient._target_.rpartition(".")[2]
    needed.check(steps)
    drawing = "euler" if config.model.sampling.scheduler == "euler" else "ddim"  # flows take Euler's steps
    if needed.draws and config.sampling.scheduler != drawing:
        raise UsageError(
            f"sampling.scheduler={config.sampling.scheduler}: gradient={name} draws its steps, which {drawing} alone "
            "can do with this model"
        )
    if config.conditioning.tuned_on == "all":
        return
    n, total = config.conditioning.n, config.sampling.steps
    if not 1 <= n <= total:
        raise UsageError(f"conditioning.n={n} must lie between 1 and sampling.steps={total}")
    least = -(-needed.reach(steps) * total // steps)  # training may take other steps than those that n counts
    if n < least and config.tune.denoiser is None:
        raise UsageError(
            f"conditioning.n={n}: gradient={name} may put its gradient where the tuned encoder has no say; "
            f"conditioning.n must be at least {least} here"
        )


def _check_rates(training: DictConfig) -> None:
    schedule, cycles = training.lr_schedule, training.lr_cycles
    if schedule not in SCHEDULES:
        raise UsageError(f"training.lr_schedule={schedule} must be one of {', '.join(SCHEDULES)}")
    if cycles > 1 and schedule != WITH_CYCLES:
        raise UsageError(
            f"training.lr_cycles={cycles}: training.lr_schedule={schedule} has no cycles; {WITH_CYCLES} has"
        )
    falling = max(1, training.steps - training.warmup)
    if cycles > falling:
        raise UsageError(f"training.lr_cycles={cycles} must be at most {falling}, the steps after training.warmup")


def _check_tune(config: DictConfig) -> None:
    if len(config.tuned) > 1:
        raise UsageError(f"tuned names {len(config.tuned)} runs ({', '.join(config.tuned)}): training starts from one")
    Mix(dict(config.tuned))
    check_base(config.tuned, config)
