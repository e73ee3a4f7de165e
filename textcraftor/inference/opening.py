"""From a configuration to a model that is ready: loaded, tuned parts in their places, what does not learn frozen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from textcraftor.config.tune import tuned_parts
from textcraftor.errors import UsageError
from textcraftor.inference.generate import Sampling
from textcraftor.inference.mix import Mix
from textcraftor.models.loading import dtype_of, freeze, load_model
from textcraftor.models.model import ORIGINAL, Model
from textcraftor.models.quantizing import quantize
from textcraftor.models.tuned import TEXT_ENCODERS
from textcraftor.models.tuning import Learner, add_learners
from textcraftor.sampling.conditioning import ConditioningSchedule

BEGIN = "begin"  # the name of the run that training starts from


@dataclass
class Opened:
    """A model that is ready.

    Args:
        schedules: of each mix, which encoder conditions which noise level.
        learners: what `tune` names.
        precision: of the frozen parts, and why, for people.
    """

    model: Model
    sampling: Sampling
    schedules: list[ConditioningSchedule]
    learners: list[Learner]
    precision: str


def open_model(config: DictConfig, mixes: Sequence[Mix], prompts: Iterable[str] = ()) -> Opened:
    """Load the model that a configuration names, with the encoders of mixes and the denoiser of the first.

    Args:
        config: of any command with a model; where it has `tune`, that learns, in float32.
        prompts: whose words the model must know.

    Raises:
        UsageError: any part of that cannot be meant.
    """
    dtype, reason = dtype_of(config, "dtype") if "dtype" in config else (torch.float32, "as it is written")
    tune = dict(tuned_parts(config.get("tune") or {}))
    model = load_model(config, part_dtypes(dtype, mixes, tune))
    sampling = Sampling(**config.sampling)
    model.check_prompts([*prompts, sampling.negative_prompt])
    if sampling.negative_prompt and not model.guided(sampling.guidance_scale):
        raise UsageError(
            f"negative_prompt={sampling.negative_prompt} would be ignored: without classifier-free guidance, at "
            f"sampling.guidance_scale={sampling.guidance_scale}, this model has no branch for it"
        )
    mixes[0].load_denoiser(model)
    schedules = [mix.schedule(model, lambda steps: sampling.with_steps(steps).timesteps(model)) for mix in mixes]
    begin = BEGIN if BEGIN in model.readers else ORIGINAL
    learners = add_learners(model, tune, size=sampling.size, begin=begin)
    freeze(model, dtype)
    precision = f"the rest in {dtype} ({reason})"
    if kinds := config.get("quantize"):
        precision += f"; {quantize(model, kinds, sampling.height, sampling.width)}"
    model.remember()
    return Opened(model, sampling, schedules, learners, precision)


def part_dtypes(dtype: torch.dtype, mixes: Sequence[Mix], tune: dict) -> dict[str, torch.dtype]:
    """The precision to read each part in: float32 for what learns whole or was tuned, which rounding would lose."""
    exact = [part for part, options in tune.items() if options is not None and options["lora"] is None]
    exact += ["denoiser"] if any(mix.tunes_denoiser for mix in mixes) else []
    exact += TEXT_ENCODERS if any(mix.merge for mix in mixes) else []
    exact += ["vae"] if dtype == torch.float16 else []
    return {"default": dtype, **dict.fromkeys(exact, torch.float32)}
