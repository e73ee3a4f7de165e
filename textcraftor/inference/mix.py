"""Text encoders mixed, switched and merged; for our own chain and, through public arguments alone, for any pipeline."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from omegaconf import DictConfig
from torch import Tensor

from textcraftor.errors import UsageError
from textcraftor.models.base import Conditioning
from textcraftor.models.stable_diffusion import StableDiffusion
from textcraftor.models.tuned import (
    check_confined,
    load_text_encoder,
    load_unet,
    merge_text_encoders,
    read_json,
    tuned_folders,
)
from textcraftor.sampling.conditioning import ConditioningSchedule

OWN_UNET, REST = "original", "rest"


@dataclass(frozen=True)
class Mix:
    """Weights over the original text encoder and tuned ones, and the noise levels from which on they hold.

    Args:
        tuned: run folders by the names that `weights` uses.
        weights: over `original` and the names of `tuned`; negative ones extrapolate. One may be `rest`: what the others
            leave to 1; where none is and `original` is not named, that takes the rest. None at all: the one tuned
            encoder, as its run conditioned with it.
        last: (n, steps): the weights hold in the last n of so many steps, the original encoder alone before. What is
            kept is the noise level where that begins, so it means the same to another sampler or number of steps.
        timestep: instead of `last`, that noise level itself, as a training timestep. With neither, as the runs were
            tuned.
        merge: add up the encoders' weights (one encoder, no extra cost) instead of their embeddings (the paper's).
        unet: a folder with a tuned UNet or adapters for one, or a LoRA's file; `original` leaves out what the runs
            tuned of the UNet; nothing takes the UNet of the one run that has one.
        unet_strength: of its adapters.

    Raises:
        UsageError: before any model is loaded: names, folders and numbers that cannot be meant.
    """

    tuned: Mapping[str, str | Path] = field(default_factory=dict)
    weights: Mapping[str, float | Literal["rest"]] = field(default_factory=dict)
    last: tuple[int, int] | None = None
    timestep: int | None = None
    merge: bool = False
    unet: str | Path | None = None
    unet_strength: float = 1.0
    _loaded: WeakKeyDictionary = field(default_factory=WeakKeyDictionary, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        opened = {name: os.path.expanduser(run) for name, run in self.tuned.items()}
        object.__setattr__(self, "tuned", opened)
        for name, run in self.tuned.items():
            if not (Path(run) / "conditioning.json").exists():
                raise UsageError(f"tuned.{name}={run} holds no conditioning.json: give the folder of a finished run")
            check_confined(Path(run))
        encoders = self._encoders()
        for name, weight in self.weights.items():
            if name not in ("original", *encoders):
                untuned = f"; {self.tuned[name]} tuned no text encoder" if name in self.tuned else ""
                raise UsageError(f"mix.{name}={weight} must name one of {', '.join(['original', *encoders])}{untuned}")
            if weight != REST and not (isinstance(weight, (int, float)) and math.isfinite(weight)):
                raise UsageError(f"mix.{name}={weight} must be a finite number, or {REST}")
        rests = [name for name, weight in self.weights.items() if weight == REST]
        if len(rests) > 1:
            raise UsageError(f"{' and '.join(rests)}: one alone can take the rest")
        if not self.weights and len(encoders) > 1:
            given = " ".join(f"mix.{name}={1 / len(encoders):.2g}" for name in encoders)
            raise UsageError(f"tuned names {len(encoders)} text encoders: say how much of each, as {given}")
        if self.last is not None and self.timestep is not None:
            raise UsageError("switch.last and switch.timestep mean the same: give one of them")
        if self.last is not None and not 1 <= self.last[0] <= self.last[1]:
            raise UsageError(f"switch.last={self.last[0]} must lie between 1 and sampling.steps={self.last[1]}")
        if self.timestep is not None and self.timestep < 0:
            raise UsageError(f"switch.timestep={self.timestep} must not be negative")
        if self.weights and not any(self.all_weights.values()):
            raise UsageError("every weight of the mix is 0: nothing would condition the picture")
        self._switch()
        self._unet_folder()

    @classmethod
    def of(cls, config: DictConfig, **weights: float) -> Mix:
        """What the keys tuned, mix, switch, merge and denoiser of a command mean, with some weights changed."""
        last = None if config.switch.last is None else (config.switch.last, config.sampling.steps)
        given = dict(config.mix) | weights
        return cls(dict(config.tuned), given, last, config.switch.timestep, config.merge, **unet_of(config))

    @property
    def all_weights(self) -> dict[str, float]:
        """With the original encoder's, and without those that are 0."""
        given = self.weights or dict.fromkeys(self._encoders(), 1.0)
        found = {name: float(weight) for name, weight in given.items() if weight != REST}
        takes = next((name for name, weight in given.items() if weight == REST), "original")
        found.setdefault(takes, 1.0 - sum(found.values()))
        return {name: weight for name, weight in found.items() if abs(weight) > 1e-9}

    def __str__(self) -> str:
        """Its weights, as `0.4 original + 0.6 a`."""
        return " + ".join(f"{weight:g} {name}" for name, weight in self.all_weights.items())

    def _encoders(self) -> list[str]:
        return [name for name, run in self.tuned.items() if tuned_folders(Path(run), ["text_encoder"])]

    def _switch(self) -> tuple[int, bool] | None:
        """The noise level from which on the runs want them, and whether that is everywhere."""
        schedules = {name: read_schedule(Path(self.tuned[name])) for name in self._encoders()}
        wanted = {name: None if one.early == one.late else one.switch_timestep for name, one in schedules.items()}
        if len(set(wanted.values())) > 1 and self.last is None and self.timestep is None:
            each = [f"{name} {'everywhere' if t is None else f'up to timestep {t}'}" for name, t in wanted.items()]
            raise UsageError(
                f"the runs were tuned to condition different steps ({', '.join(each)}): "
                "give switch.last or switch.timestep"
            )
        return next(((one.switch_timestep, one.early == one.late) for one in schedules.values()), None)

    def _unet_folder(self) -> Path | None:
        if self.unet == OWN_UNET:
            return None
        if self.unet is not None:
            if not Path(self.unet).expanduser().exists():
                raise UsageError(
                    f"denoiser.path={self.unet} does not exist: give a folder, a LoRA's file, or {OWN_UNET}"
                )
            return Path(self.unet).expanduser()
        runs = {name: Path(run) for name, run in self.tuned.items() if tuned_folders(Path(run), ["unet"])}
        if len(runs) > 1:
            raise UsageError(
                f"{' and '.join(runs)} each tuned a UNet: choose one with denoiser.path, or denoiser.path={OWN_UNET}"
            )
        return next(iter(runs.values()), None)

    def schedule(self, model: StableDiffusion, scheduler: SchedulerMixin) -> ConditioningSchedule:
        """Load what is not in the model yet; returns which encoder conditions which noise level.

        Args:
            scheduler: the sampler that `last` counts the steps of.
        """
        for name in self._encoders():
            if name not in model.text_encoders:
                load_text_encoder(model, Path(self.tuned[name]), name)
        weights, original = self.all_weights, {"original": 1.0}
        if self.merge and len(weights) > 1:
            name = str(self)
            if name not in model.text_encoders:
                merge_text_encoders(model, weights, name)
            weights = {name: 1.0}
        if self.last is not None:
            n, steps = self.last
            scheduler.set_timesteps(steps)
            return ConditioningSchedule(int(scheduler.timesteps[-n]), weights, original)
        if self.timestep is not None:
            return ConditioningSchedule(self.timestep, weights, original)
        switch, everywhere = self._switch() or (0, True)
        return ConditioningSchedule(switch, weights, weights if everywhere else original)

    def load_unet(self, model: StableDiffusion) -> None:
        """Put the mix's UNet in the model's place, where it has one."""
        folder = self._unet_folder()
        if folder is not None:
            load_unet(model, folder, self.unet_strength)

    @torch.no_grad()
    def inputs(
        self,
        pipe: DiffusionPipeline,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        **arguments,
    ) -> dict[str, Any]:
        """Arguments for any Stable Diffusion pipeline of diffusers, img2img, inpainting and ControlNet among them:
        `pipe(**mix.inputs(pipe, prompt, num_inference_steps=25), image=...)`. The UNet stays the pipeline's own.

        Args:
            prompt, negative_prompt: one, or one each.
            arguments: the pipeline's own; the number of steps and the strength belong here, for the first step's
                conditioning depends on them. They are returned with the rest.
        """
        model = StableDiffusion(pipe)
        model.text_encoders |= {name: encoder.to(model.device) for name, encoder in self._loaded.get(pipe, {}).items()}
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
        schedule = self.schedule(model, type(pipe.scheduler).from_config(pipe.scheduler.config))
        self._loaded[pipe] = {name: part for name, part in model.text_encoders.items() if name != "original"}
        encoded = {name: model.encode(prompts, negatives, name) for name in schedule.encoders}
        first = schedule.at(encoded, first_timestep(pipe, arguments))
        found = {
            **arguments,
            "prompt_embeds": first.prompt_embeds,
            "negative_prompt_embeds": first.negative_prompt_embeds,
        }
        if schedule.early == schedule.late:
            return found
        wanted = list(
            dict.fromkeys(["prompt_embeds", *arguments.get("callback_on_step_end_tensor_inputs", ["latents"])])
        )
        theirs = arguments.get("callback_on_step_end")
        switch = partial(switch_embeds, partial(schedule.at, encoded), theirs)
        return found | {"callback_on_step_end": switch, "callback_on_step_end_tensor_inputs": wanted}


def unet_of(config: DictConfig) -> dict[str, Any]:
    """What a command's key denoiser means, as options of `Mix`."""
    return {"unet": config.denoiser.path, "unet_strength": config.denoiser.strength}


def read_schedule(run: Path) -> ConditioningSchedule:
    """The schedule that a run was tuned with, from its `conditioning.json`."""
    file = run / "conditioning.json"
    stored = read_json(file)
    try:
        stages = [{str(name): float(weight) for name, weight in stored[stage].items()} for stage in ("late", "early")]
        return ConditioningSchedule(int(stored["switch_timestep"]), *stages)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"{file}: {error!r}; it must give switch_timestep, late and early, as runs write it"
        ) from error


def first_timestep(pipe: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Of the steps that a pipeline will take with these arguments."""
    defaults = {name: given.default for name, given in inspect.signature(pipe.__call__).parameters.items()}
    chosen = {**defaults, **arguments}
    own = {name: chosen[name] for name in ("timesteps", "sigmas") if chosen.get(name) is not None}
    pipe.scheduler.set_timesteps(**own or {"num_inference_steps": chosen["num_inference_steps"]})
    if not hasattr(pipe, "get_timesteps"):
        return pipe.scheduler.timesteps[0]
    return pipe.get_timesteps(
        len(pipe.scheduler.timesteps) if own else chosen["num_inference_steps"], chosen["strength"], "cpu"
    )[0][0]


def switch_embeds(
    conditioning_at: Callable[[Tensor], Conditioning],
    theirs: Callable | None,
    pipe: Any,
    step: int,
    t: Tensor,
    tensors: dict[str, Tensor],
) -> dict[str, Tensor]:
    """A pipeline's `callback_on_step_end`: the embeddings for the step that comes next."""
    tensors = theirs(pipe, step, t, tensors) if theirs else tensors
    steps = pipe.scheduler.timesteps[-pipe.num_timesteps :]
    if step + 1 < len(steps):
        now, conditioning = tensors["prompt_embeds"], conditioning_at(steps[step + 1])
        both = [conditioning.negative_prompt_embeds] * pipe.do_classifier_free_guidance + [conditioning.prompt_embeds]
        embeds = torch.cat(both).to(now)
        tensors["prompt_embeds"] = embeds.repeat_interleave(len(now) // len(embeds), 0)
    return tensors
