"""`dry_run=true` where the weights are not: what a run would need, from configurations alone."""

from __future__ import annotations

from typing import Any

import huggingface_hub
import torch
from omegaconf import DictConfig

from textcraftor.config.making import made
from textcraftor.config.tune import tuned_parts
from textcraftor.data.prompts import PromptDraw
from textcraftor.inference.generate import Sampling
from textcraftor.inference.opening import part_dtypes
from textcraftor.models.layout import StandInTokenizer, read_layout, skeleton
from textcraftor.models.loading import device_of, dtype_of, freeze, local_path
from textcraftor.models.model import Model
from textcraftor.models.tuning import add_learners
from textcraftor.rewards.skeletons import skeleton_rewards
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.training.activations import Activations
from textcraftor.training.counting import fused_attention
from textcraftor.training.job import scorers_part, updating_bytes
from textcraftor.training.memory import Plan, available_bytes, bytes_of, host_bytes, plan_memory
from textcraftor.training.phases import GB
from textcraftor.training.reward_tuning import RewardTuning

PROMPT = "a prompt of whatever length"


def has_weights(path: str) -> bool:
    """Whether a model lies on this disk, as a folder or file or in the hub's cache."""
    if not path or local_path(path).exists():  # a pipeline that a Python program gave may lie nowhere
        return True
    return isinstance(huggingface_hub.try_to_load_from_cache(path, "model_index.json"), str) if "/" in path else False


def _ready_mask(encoder: Any, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Give attention its mask in four dimensions: on `meta` one of tokens cannot be asked whether it hides any."""
    mask = options.get("attention_mask")
    if mask is None:
        return arguments, options
    ready = mask.bool()[:, None, None].expand(-1, -1, mask.shape[-1], -1)
    return arguments, {**options, "attention_mask": ready}


def predict(config: DictConfig) -> tuple[Plan, list[str]]:
    """The memory plan of a run on a model that is built without its weights, and the scorers that are not counted."""
    dtype = dtype_of(config, "dtype")[0]
    tune = dict(tuned_parts(config.tune))
    layout = read_layout(config.model.layout)
    dtypes = part_dtypes(dtype, [], tune)
    denoiser = next(part for part in ("unet", "transformer") if part in layout)
    dtypes[denoiser] = dtypes.pop("denoiser", dtype)
    model, sampling = Model(skeleton(layout, dtypes)), Sampling(**config.sampling)
    for encoder in model.encoders().values():
        encoder.register_forward_pre_hook(_ready_mask, with_kwargs=True)
    learners = add_learners(model, tune, size=sampling.size)
    freeze(model, dtype)
    tuned = {"tuned": 1.0} if "tuned" in model.readers else {"original": 1.0}
    schedule = ConditioningSchedule(model.noise_schedule.timesteps, tuned, tuned)
    rewards, unknown = skeleton_rewards(
        config.rewards, dtype_of(config, "scorer_dtype")[0], StandInTokenizer("CLIPTokenizer")
    )
    steps = Sampling(**{**config.sampling, **config.training.sampling})
    draw, detach = PromptDraw([PROMPT], config.seed), config.conditioning.detach_negative
    method = RewardTuning(model, rewards, made(config.gradient), schedule, steps, draw, detach)
    device = torch.device(device_of(config.device))
    limit = available_bytes(device) if config.memory.budget == "auto" else float(config.memory.budget) * GB
    parts = [
        model.denoiser,
        model.vae,
        rewards,
        *(one for name in model.readers for one in model.encoders(name).values()),
    ]
    with fused_attention():
        plan = plan_memory(
            limit / GB,
            device,
            Activations(method, PROMPT),
            config.training.batch_size,
            updating_bytes(learners, config.training.ema_decay),
            resident=bytes_of(parts),
            parts=[*model.placeable(), scorers_part(rewards)],
            chosen=config.memory.places,
            host=host_bytes(device if config.memory.budget == "auto" else torch.device("meta")),
        )
    return plan, unknown


def prediction(config: DictConfig) -> str:
    """The same in one line."""
    plan, unknown = predict(config)
    uncounted = f"; not counted: {', '.join(unknown)}" if unknown else ""
    return (
        f"{config.model.path} is not on this disk: predicted from its configuration alone, not measured. "
        f"{plan}{uncounted}; nothing was written"
    )
