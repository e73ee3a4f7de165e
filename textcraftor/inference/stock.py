"""What a mix of encoders says, as arguments of the stock pipelines of diffusers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from textcraftor.errors import UsageError
from textcraftor.models.base import Conditioning, Size
from textcraftor.models.model import Model
from textcraftor.sampling.conditioning import ConditioningSchedule

CALLBACK, CHANGED = "callback_on_step_end", "callback_on_step_end_tensor_inputs"


@torch.no_grad()
def stock_inputs(
    model: Model,
    schedule_of: Callable[[Model, Callable[[int], Tensor]], ConditioningSchedule],
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Embeddings, and where encoders change between steps the callback that changes them; see `Mix.inputs`.

    Args:
        schedule_of: which encoder conditions which noise level, from the timesteps of a number of steps.
    """
    pipe, family = model.pipeline, model.family
    defaults = {name: given.default for name, given in inspect.signature(pipe.__call__).parameters.items()}
    chosen = {**defaults, **arguments}
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    one = negative_prompt is None or isinstance(negative_prompt, str)
    negatives: list[Any] = [negative_prompt] * len(prompts) if one else list(negative_prompt or ())
    guided = model.guided(chosen.get("guidance_scale") or 1.0) or negative_prompt is not None
    size = _size_of(pipe, chosen)
    schedule = schedule_of(model, lambda steps: _timesteps(model, size, {"num_inference_steps": steps}))
    encoded = {name: model.encode(prompts, negatives if guided else None, name, size) for name in schedule.encoders}
    first = schedule.at(encoded, _first_timestep(model, size, chosen))
    found = dict(arguments)
    for prefix, branch in (("", first.prompt), ("negative_", first.negative)):
        for name, argument in family.arguments.items() if branch is not None else ():
            if prefix + argument not in defaults:
                raise UsageError(
                    f"negative_prompt={negative_prompt}: {type(pipe).__name__} takes no {prefix + argument}"
                )
            found[prefix + argument] = branch.mixed[name]  # type: ignore[union-attr]
    if schedule.early == schedule.late:
        return found
    changed = _changed(model, [schedule.at(encoded, t) for t in (0, model.noise_schedule.timesteps)])
    wanted = dict.fromkeys([*changed.values(), *arguments.get(CHANGED, ["latents"])])
    switch = partial(_switch, partial(schedule.at, encoded), changed, family.joined, arguments.get(CALLBACK))
    return found | {CALLBACK: switch, CHANGED: list(wanted)}


def _changed(model: Model, ends: Sequence[Conditioning]) -> dict[str, str]:
    """The tensors that encoders disagree on, with the names that the pipeline's callback knows them by.

    Raises:
        UsageError: it does not know one of them.
    """
    pipe, family = model.pipeline, model.family
    found = {}
    for branches in zip(*(end.branches for end in ends), strict=True):
        for name in branches[0].mixed if branches[0] is not None else ():
            if torch.equal(*(branch.mixed[name] for branch in branches)):  # type: ignore[union-attr]
                continue
            seen = family.switchable.get(name, "")
            negative = branches[0] is ends[0].negative
            if seen not in pipe._callback_tensor_inputs or (negative and not family.joined):
                what = ("negative_" if negative else "") + family.arguments[name]
                raise UsageError(
                    f"{type(pipe).__name__} cannot change {what} between steps, and this mix switches encoders: let it "
                    "hold in all steps, last=(steps, steps), or generate with TextCraftor's own sampler"
                )
            found[name] = seen
    return found


def _size_of(pipe: Any, chosen: Mapping[str, Any]) -> Size:
    """Height and width of the pictures that a pipeline will make with these arguments."""
    usual = getattr(pipe, "default_sample_size", None) or getattr(pipe, "unet", pipe).config.get("sample_size", 64)
    height, width = usual if isinstance(usual, tuple | list) else (usual, usual)
    scale = pipe.vae_scale_factor
    return chosen.get("height") or height * scale, chosen.get("width") or width * scale


def _timesteps(model: Model, size: Size, chosen: Mapping[str, Any], pipe: Any = None) -> Tensor:
    """The timesteps that the pipeline's own scheduler takes; a copy of it, so that the pipeline stays as it is."""
    scheduler = pipe.scheduler if pipe is not None else copy.deepcopy(model.pipeline.scheduler)
    own = {name: chosen[name] for name in ("timesteps", "sigmas") if chosen.get(name) is not None}
    if own:
        scheduler.set_timesteps(**own)
    else:
        model.family.set_timesteps(model.pipeline, scheduler, chosen["num_inference_steps"], size)
    return scheduler.timesteps


def _first_timestep(model: Model, size: Size, chosen: Mapping[str, Any]) -> Tensor:
    """The first timestep of those that a pipeline will take with these arguments."""
    pipe = copy.copy(model.pipeline)
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    timesteps = _timesteps(model, size, chosen, pipe)
    if "strength" not in chosen:
        return timesteps[0]
    own = any(chosen.get(name) is not None for name in ("timesteps", "sigmas"))
    steps = len(timesteps) if own else chosen["num_inference_steps"]
    return pipe.get_timesteps(steps, chosen["strength"], "cpu")[0][0]


def _switch(
    conditioning_at: Callable[[Tensor], Conditioning],
    changed: Mapping[str, str],
    joined: bool,
    theirs: Callable | None,
    pipe: Any,
    step: int,
    t: Tensor,
    tensors: dict[str, Tensor],
) -> dict[str, Tensor]:
    """A pipeline's `callback_on_step_end`: the embeddings for the step that comes next."""
    tensors = theirs(pipe, step, t, tensors) if theirs else tensors
    steps = pipe.scheduler.timesteps[-pipe.num_timesteps :]
    if step + 1 == len(steps):
        return tensors
    prompt, negative = conditioning_at(steps[step + 1]).branches
    both = [negative, prompt] if joined and pipe.do_classifier_free_guidance else [prompt]
    for name, seen in changed.items():
        said = torch.cat([branch.mixed[name] for branch in both]).to(tensors[seen])  # type: ignore[union-attr]
        tensors[seen] = said.repeat_interleave(len(tensors[seen]) // len(said), 0)
    return tensors
