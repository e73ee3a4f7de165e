"""Text encoders mixed, switched and merged; for our own chain and, through public arguments alone, for any pipeline."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from diffusers import DiffusionPipeline
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedModel

from textcraftor.errors import UsageError
from textcraftor.files.reading import check_confined
from textcraftor.inference.stock import check_unadapted, stock_inputs
from textcraftor.models.model import ORIGINAL, Model
from textcraftor.models.run_record import Base, RunRecord, is_run
from textcraftor.models.saving import plain_encoder
from textcraftor.models.tuned import (
    DENOISERS,
    TEXT_ENCODERS,
    check_adapters,
    load_denoiser,
    load_text_encoders,
    merge_text_encoders,
    new_words,
    tuned_folders,
)
from textcraftor.models.tuning import keeping_gradients
from textcraftor.sampling.conditioning import ConditioningSchedule

OWN, REST = "original", "rest"


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
        denoiser: a folder with a tuned denoiser or adapters for one, or a LoRA's file; `original` leaves out what the
            runs tuned of the denoiser; nothing takes that of the one run that has one.
        denoiser_strength: of its adapters.

    Raises:
        UsageError: before any model is loaded: names, folders and numbers that cannot be meant.
    """

    tuned: Mapping[str, str | Path] = field(default_factory=dict)
    weights: Mapping[str, float | Literal["rest"]] = field(default_factory=dict)
    last: tuple[int, int] | None = None
    timestep: int | None = None
    merge: bool = False
    denoiser: str | Path | None = None
    denoiser_strength: float = 1.0
    _loaded: WeakKeyDictionary = field(default_factory=WeakKeyDictionary, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if taken := next((name for name in self.tuned if name in (ORIGINAL, REST)), None):
            raise UsageError(
                f"tuned.{taken}={self.tuned[taken]}: {taken} has a meaning of its own in mix; choose another"
            )
        opened = {name: os.path.expanduser(run) for name, run in self.tuned.items()}
        object.__setattr__(self, "tuned", opened)
        for name, run in self.tuned.items():
            if not is_run(Path(run)):
                raise UsageError(f"tuned.{name}={run} holds no run.json: give the folder of a finished run")
            check_confined(Path(run))
            check_adapters(Path(run), TEXT_ENCODERS)
        encoders = self.encoders
        for name, weight in self.weights.items():
            if name not in (ORIGINAL, *encoders):
                untuned = f"; {self.tuned[name]} tuned no text encoder" if name in self.tuned else ""
                raise UsageError(f"mix.{name}={weight} must name one of {', '.join([ORIGINAL, *encoders])}{untuned}")
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
        if (folder := self._denoiser_folder()) is not None:
            check_adapters(folder, DENOISERS)

    @classmethod
    def of(cls, config: DictConfig, **weights: float) -> Mix:
        """What the keys tuned, mix, switch, merge and denoiser of a command mean, with some weights changed."""
        check_base(config.tuned, config)
        last = None if config.switch.last is None else (config.switch.last, config.sampling.steps)
        given = dict(config.mix) | weights
        return cls(dict(config.tuned), given, last, config.switch.timestep, config.merge, **denoiser_of(config))

    @property
    def all_weights(self) -> dict[str, float]:
        """All weights, with the original encoder's, without zeros."""
        given = self.weights or dict.fromkeys(self.encoders, 1.0)
        weights = {name: float(weight) for name, weight in given.items() if weight != REST}
        takes = next((name for name, weight in given.items() if weight == REST), ORIGINAL)
        weights.setdefault(takes, 1.0 - sum(weights.values()))
        return {name: weight for name, weight in weights.items() if abs(weight) > 1e-9}

    def __str__(self) -> str:
        """Its weights, as `0.4 original + 0.6 a`."""
        return " + ".join(f"{weight:g} {name}" for name, weight in self.all_weights.items())

    @property
    def encoders(self) -> list[str]:
        """The names of the runs that tuned a text encoder."""
        return [name for name, run in self.tuned.items() if tuned_folders(Path(run), TEXT_ENCODERS)]

    @property
    def tunes_denoiser(self) -> bool:
        """Whether the denoiser is not the model's own."""
        return self._denoiser_folder() is not None

    def _switch(self) -> tuple[int, bool] | None:
        """The noise level from which on the runs want them, and whether that is everywhere."""
        schedules = {name: read_schedule(Path(self.tuned[name])) for name in self.encoders}
        wanted = {name: None if one.early == one.late else one.switch_timestep for name, one in schedules.items()}
        if len(set(wanted.values())) > 1 and self.last is None and self.timestep is None:
            each = [f"{name} {'everywhere' if t is None else f'up to timestep {t}'}" for name, t in wanted.items()]
            raise UsageError(
                f"the runs were tuned to condition different steps ({', '.join(each)}): "
                "give switch.last or switch.timestep"
            )
        return next(((one.switch_timestep, one.early == one.late) for one in schedules.values()), None)

    def _denoiser_folder(self) -> Path | None:
        if self.denoiser == OWN:
            return None
        if self.denoiser is not None:
            if not Path(self.denoiser).expanduser().exists():
                raise UsageError(
                    f"denoiser.path={self.denoiser} does not exist: give a folder, a LoRA's file, or {OWN}"
                )
            return Path(self.denoiser).expanduser()
        runs = {name: Path(run) for name, run in self.tuned.items() if tuned_folders(Path(run), DENOISERS)}
        if len(runs) > 1:
            raise UsageError(
                f"{' and '.join(runs)} each tuned a denoiser: choose one with denoiser.path, or denoiser.path={OWN}"
            )
        return next(iter(runs.values()), None)

    def schedule(self, model: Model, timesteps_of: Callable[[int], Tensor] | None = None) -> ConditioningSchedule:
        """Load what is not in the model yet; returns which encoder conditions which noise level.

        Args:
            timesteps_of: a number of steps, the highest noise first, as the sampler takes them that `last` counts.
        """
        for name in self.encoders:
            if name not in model.readers:
                load_text_encoders(model, Path(self.tuned[name]), name)
        weights, original = self.all_weights, {ORIGINAL: 1.0}
        if self.merge and len(weights) > 1:
            name = str(self)
            if name not in model.readers:
                merge_text_encoders(model, weights, name)
            weights = {name: 1.0}
        if self.last is not None:
            n, steps = self.last
            if timesteps_of is None:
                raise UsageError("last= counts a sampler's steps: give timesteps_of, or timestep= instead of last=")
            return ConditioningSchedule(int(timesteps_of(steps)[-n]), weights, original)
        if self.timestep is not None:
            return ConditioningSchedule(self.timestep, weights, original)
        switch, everywhere = self._switch() or (0, True)
        return ConditioningSchedule(switch, weights, weights if everywhere else original)

    def load_denoiser(self, model: Model) -> None:
        """Put the mix's denoiser in the model's place, where it has one."""
        folder = self._denoiser_folder()
        if folder is not None:
            load_denoiser(model, folder, self.denoiser_strength)

    def inputs(
        self,
        pipe: DiffusionPipeline,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        **arguments,
    ) -> dict[str, Any]:
        """Arguments for a stock pipeline, img2img, inpainting and ControlNet among them:
        `pipe(**mix.inputs(pipe, prompt, num_inference_steps=25), image=...)`. The denoiser stays the pipeline's own.

        Args:
            prompt, negative_prompt: one, or one each.
            arguments: the pipeline's own; the number of steps, the size and the strength belong here, for the first
                step's conditioning depends on them, and `clip_skip` and `max_sequence_length`, which say how prompts
                are read. They are returned with the rest.

        Raises:
            UsageError: an argument that a mix cannot follow, adapters on the pipeline's own text encoders, or a mix
                that switches encoders where this pipeline cannot change between steps what they say.
        """
        model = Model(pipe)
        originals: dict[str, Any] = model.encoders(ORIGINAL)
        begun, loaded = self._loaded.get(pipe, (None, {}))
        words = new_words(model)
        if begun is not None and all(torch.equal(begun[part], words[part]) for part in words):
            for name, encoders in loaded.items():
                model.add_reader(name, {part: encoder.to(model.device) for part, encoder in encoders.items()})
        with keeping_gradients(model):
            given = stock_inputs(model, self.schedule, prompt, negative_prompt, arguments)
        loaded = {
            name: {part: one for part, one in model.encoders(name).items() if one is not originals[part]}
            for name in model.readers
            if name != ORIGINAL
        }
        self._loaded[pipe] = words, loaded
        return given

    def encoder(self, pipe: DiffusionPipeline, part: str = "text_encoder") -> PreTrainedModel:
        """A plain text encoder with the mix in its weights, for tools that read prompts themselves, as compel does:
        `pipe.text_encoder = mix.encoder(pipe)`. The encoders' weights are added up, whatever `merge` says.

        Args:
            part: of a pipeline with several, `text_encoder_2` or `text_encoder_3`.

        Returns:
            a copy, frozen, on the device and in the precision of the pipeline's own.

        Raises:
            UsageError: a mix that switches encoders, weights that do not add up to 1, no such part, or adapters on the
                pipeline's own text encoders.
        """
        if self.switches:
            raise UsageError(
                f"the mix {self} holds in some steps and the original encoder in the others, which is no single "
                "encoder: use inputs(), or last=(steps, steps)"
            )
        if abs(sum(self.all_weights.values()) - 1) > 1e-6:
            raise UsageError(f"the mix {self} is no single encoder: let its weights add up to 1, or use inputs()")
        model = Model(pipe)
        check_unadapted(model)
        own = getattr(pipe, part, None)
        with keeping_gradients(model):
            (name,) = replace(self, last=None, timestep=0, merge=True).schedule(model).late
            return plain_encoder(model, name, part).to(own.device, own.dtype)  # type: ignore[union-attr]

    @property
    def switches(self) -> bool:
        """Whether the mix holds in some of the steps alone."""
        if self.last is not None:
            return self.last[0] < self.last[1]
        _, everywhere = self._switch() or (0, True)
        return self.timestep is not None or not everywhere


def check_base(tuned: Mapping[str, str], config: DictConfig) -> None:
    """Refuse runs that were tuned on another model than the configuration's, unless it allows that."""
    if config.any_base:
        return
    ours = Base.of(config.model)
    for name, run in tuned.items():
        folder = Path(run).expanduser()
        if not is_run(folder):
            raise UsageError(f"tuned.{name}={run} holds no run.json: give the folder of a finished run")
        base = RunRecord.read(folder).base
        if base is not None and not base.is_same(ours):
            theirs = base.path or "a pipeline of a Python program"
            raise UsageError(
                f"tuned.{name}={run} was tuned on {theirs}, and model.path={ours.path} is another model: "
                "leave model= and model.path= out to take the run's, or any_base=true to put its parts into this one"
            )


def denoiser_of(config: DictConfig) -> dict[str, Any]:
    """What a command's key denoiser means, as options of `Mix`."""
    return {"denoiser": config.denoiser.path, "denoiser_strength": config.denoiser.strength}


def read_schedule(run: Path) -> ConditioningSchedule:
    """The schedule that a run was tuned with."""
    return ConditioningSchedule(**RunRecord.read(run).conditioning)
