"""What a mix of encoders says, as arguments of the stock pipelines of diffusers."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from textcraftor.errors import UsageError
from textcraftor.models.base import Conditioning, Size
from textcraftor.models.model import Model
from textcraftor.models.tuning import has_adapters
from textcraftor.sampling.conditioning import ConditioningSchedule

CALLBACK, CHANGED = "callback_on_step_end", "callback_on_step_end_tensor_inputs"
OLD_CALLBACK = ("callback", "callback_steps")  # which some pipelines still take without naming them
READING = ("clip_skip", "max_sequence_length", "text_encoder_out_layers")  # how prompts are read
COUNTS = {"num_inference_steps": 1, "max_sequence_length": 1, "clip_skip": 0}  # whole numbers, and the least of each
CLOSE = 1e-2  # how far rounding may take embeddings from those that were given, as a share of the largest


@torch.no_grad()
def stock_inputs(
    model: Model,
    schedule_of: Callable[[Model, Callable[[int], Tensor]], ConditioningSchedule],
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Embeddings and, if encoders change between steps, the callback that switches them; see `Mix.inputs`.

    Args:
        schedule_of: makes the schedule of encoders, from the timesteps of a number of steps.
    """
    pipe, family = model.pipeline, model.family
    arguments = {name: value for name, value in arguments.items() if value is not None}
    defaults = {name: given.default for name, given in inspect.signature(pipe.__call__).parameters.items()}
    _check(model, arguments, defaults)
    chosen = {**defaults, **arguments}
    prompts = _prompts(prompt)
    one = negative_prompt is None or isinstance(negative_prompt, str)
    negatives: list[Any] = [negative_prompt] * len(prompts) if one else list(negative_prompt or ())
    model.check_prompts([*prompts, *negatives])
    guided = model.guided(chosen.get("guidance_scale") or 1.0) or negative_prompt is not None
    size = _size_of(pipe, chosen)
    schedule = schedule_of(model, partial(_starts, model, size))
    texts = negatives if guided else None
    encoded = {name: _asked(model, arguments).encode(prompts, texts, name, size) for name in schedule.encoders}
    if texts is not None and "clip_skip" in arguments:  # which pipelines keep to the prompt
        usual = _asked(model, {name: value for name, value in arguments.items() if name != "clip_skip"})
        read = {name: usual.encode(prompts, texts, name, size).negative for name in encoded}
        encoded = {name: Conditioning(one.prompt, read[name]) for name, one in encoded.items()}
    first_timestep = _first_timestep(model, size, chosen)
    first = schedule.at(encoded, first_timestep)
    inputs = dict(arguments)
    for prefix, branch in (("", first.prompt), ("negative_", first.negative)):
        for name, argument in family.arguments.items() if branch is not None else ():
            if prefix + argument not in defaults:
                raise UsageError(
                    f"negative_prompt={negative_prompt}: {type(pipe).__name__} takes no {prefix + argument}"
                )
            inputs[prefix + argument] = branch.mixed[name]  # type: ignore[union-attr]
    if schedule.early == schedule.late:
        return inputs
    changed = _changed(model, [schedule.at(encoded, t) for t in (0, model.noise_schedule.timesteps)])
    theirs = arguments.get(CALLBACK)
    asked = getattr(theirs, "tensor_inputs", arguments.get(CHANGED, ["latents"]))
    switch = partial(_switch, schedule, encoded, changed, first_timestep, theirs)
    return inputs | {CALLBACK: switch, CHANGED: list(dict.fromkeys([*changed.values(), *asked]))}


def _prompts(prompt: Any) -> list[str]:
    """One prompt or several, as a list."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, list | tuple) else []
    if not prompts or not all(isinstance(one, str) for one in prompts):
        raise UsageError(f"prompt={prompt!r} must be a text, or a list of texts: prompts are what a mix reads")
    return prompts


def _check(model: Model, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse arguments that would not do what they say, and a pipeline whose text encoders are not its own alone."""
    pipe = model.pipeline
    kind, known = type(pipe).__name__, {*defaults, *(OLD_CALLBACK if "kwargs" in defaults else ())}
    reading = inspect.signature(getattr(pipe, "encode_prompt", object)).parameters
    missing = [name for name in model.family.arguments.values() if name not in defaults]
    if "num_images_per_prompt" not in reading:
        missing.append("encode_prompt(..., num_images_per_prompt)")
    if missing:
        raise UsageError(f"{kind} has no {' and no '.join(missing)}, by which mixes work: take another pipeline")
    made = {prefix + name for name in model.family.arguments.values() for prefix in ("", "negative_")}
    for name, value in arguments.items():
        if name not in known or name == "kwargs":
            raise UsageError(f"{name}={value}: {kind} takes no such argument; see its __call__")
        if name in made:
            raise UsageError(
                f"{name} is what the mix makes of the prompt: leave it out, or give it to the pipeline without a mix"
            )
        if name in COUNTS and not (type(value) is int and value >= COUNTS[name]):
            raise UsageError(f"{name}={value!r} must be a whole number from {COUNTS[name]} on")
        if name == "clip_skip" and value >= (layers := _least_layers(model)):
            raise UsageError(f"clip_skip={value} must be less than {layers}, the layers of the shortest text encoder")
        if name == "guidance_scale" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UsageError(f"guidance_scale={value!r} must be one number, for all prompts")
        if re.fullmatch(r"(negative_)?prompt_\d", name):
            raise UsageError(f"{name}={value}: all text encoders of a mix read the same prompt; leave {name} out")
    check_unadapted(model)


def check_unadapted(model: Model) -> None:
    """Refuse a pipeline whose text encoders are not its own alone."""
    for part in model.text_encoders:
        if has_adapters(getattr(model.pipeline, part)):
            raise UsageError(
                f"the pipeline's {part} has adapters loaded, and a mix is of the base model's own encoder and tuned "
                "ones: take them off with pipe.unload_lora_weights(), and load a LoRA for the denoiser alone"
            )


def _least_layers(model: Model) -> int:
    return min(getattr(model.pipeline, part).config.num_hidden_layers for part in model.text_encoders)


def _asked(model: Model, arguments: Mapping[str, Any]) -> Model:
    """The same model, whose readers follow the arguments that say how prompts are read."""
    known = inspect.signature(model.pipeline.encode_prompt).parameters
    asked = {name: arguments[name] for name in READING if name in arguments and name in known}
    asking = copy.copy(model)
    asking.readers = {name: copy.copy(reader) for name, reader in model.readers.items()}
    for reader in asking.readers.values() if asked else ():
        vars(reader).update({part: _Named(getattr(reader, part)) for part in model.text_encoders})
        reader.encode_prompt = partial(reader.encode_prompt, **asked)
    return asking


class _Named:
    """A text encoder with the name by which diffusers finds a CLIP's last layer, which transformers 5 leaves out."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.text_model = getattr(encoder, "text_model", encoder)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._encoder(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


def _starts(model: Model, size: Size, steps: int) -> Tensor:
    """The timestep at which each of so many steps begins; some samplers call the denoiser again within a step."""
    timesteps = _timesteps(model, size, {"num_inference_steps": steps})
    return timesteps[:: getattr(model.pipeline.scheduler, "order", 1)]


def _changed(model: Model, ends: Sequence[Conditioning]) -> dict[str, str]:
    """The tensors that differ between encoders, with their names in the pipeline's callback.

    Raises:
        UsageError: the callback has no name for one.
    """
    pipe, family = model.pipeline, model.family
    callback_names = {}
    for branches in zip(*(end.branches for end in ends), strict=True):
        for name in branches[0].mixed:
            if torch.equal(*(branch.mixed[name] for branch in branches)):
                continue
            seen = family.switchable.get(name, "")
            negative = branches[0] is ends[0].negative
            if seen not in getattr(pipe, "_callback_tensor_inputs", ()) or (negative and not family.joined):
                what = ("negative_" if negative else "") + family.arguments[name]
                raise UsageError(
                    f"{type(pipe).__name__} cannot change {what} between steps, and this mix switches encoders: let it "
                    "hold in all steps, last=(steps, steps), or generate with TextCraftor's own sampler"
                )
            callback_names[name] = seen
    return callback_names


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
        if len(own) > 1 or not {*own} <= inspect.signature(scheduler.set_timesteps).parameters.keys():
            raise UsageError(
                f"{' and '.join(own)}: {type(scheduler).__name__} does not take them: give num_inference_steps instead"
            )
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
    cut = {name: chosen[name] for name in ("denoising_start",) if chosen.get(name) is not None}
    return pipe.get_timesteps(steps, chosen["strength"], "cpu", **cut)[0][0]


def _switch(
    schedule: ConditioningSchedule,
    encoded: Mapping[str, Conditioning],
    changed: Mapping[str, str],
    first: Tensor,
    theirs: Callable | None,
    pipe: Any,
    step: int,
    t: Tensor,
    tensors: dict[str, Tensor],
) -> dict[str, Tensor]:
    """A pipeline's `callback_on_step_end`: the embeddings for the step that comes next."""
    if step == 0 and schedule.weights(t) != schedule.weights(first):
        raise UsageError(
            f"the pipeline began at timestep {int(t)}, and the mix was made for a beginning at {int(first)}, with "
            "another encoder: give num_inference_steps, strength, timesteps and sigmas to inputs(), not to the pipeline"
        )
    tensors = theirs(pipe, step, t, tensors) if theirs else tensors
    following = _following(pipe, step, t)
    if following is None or (step > 0 and schedule.weights(t) == schedule.weights(following)):
        return tensors
    now, then = schedule.at(encoded, t), schedule.at(encoded, following)
    return tensors | {seen: _exchanged(pipe, seen, tensors[seen], name, now, then) for name, seen in changed.items()}


def _following(pipe: Any, step: int, t: Tensor) -> Tensor | None:
    """The timestep after that of a step; a pipeline may take not all of its scheduler's, from the first to the last."""
    steps, taken = pipe.scheduler.timesteps, pipe.num_timesteps
    if step + 1 == taken:
        return None
    skipped = (steps[step : len(steps) - taken + step + 1] == t).nonzero()
    return steps[(int(skipped[-1]) if len(skipped) else len(steps) - taken) + step + 1]


def _exchanged(pipe: Any, seen: str, held: Tensor, name: str, now: Conditioning, then: Conditioning) -> Tensor:
    """Each row of what a pipeline holds, which may be any branch's and several times there, as the next step wants it.

    Raises:
        UsageError: a row is of no branch.
    """
    before, after = (torch.cat([branch.mixed[name] for branch in one.branches]).to(held) for one in (now, then))
    if held.shape[1:] == before.shape[1:]:
        apart = torch.stack([(held - row).abs().flatten(1).amax(1) for row in before], 1)
        nearest = apart.min(1)
        if nearest.values.max() <= CLOSE * before.abs().max():
            return after[nearest.indices]
    raise UsageError(
        f"{type(pipe).__name__} has changed {seen}, and this mix switches encoders: let it hold in all steps, "
        "last=(steps, steps), or generate with TextCraftor's own sampler"
    )
