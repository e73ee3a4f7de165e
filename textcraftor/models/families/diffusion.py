"""What families with a UNet and DDPM's noise share."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
)

from textcraftor.errors import UsageError
from textcraftor.models.base import Family, Size
from textcraftor.models.noise import DiffusionNoise, NoiseSchedule
from textcraftor.models.sampler import Sampler

# Deterministic samplers, and what their configuration must say for latents.
SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
}


class Diffusion(Family):
    """A UNet that predicts noise, v or clean latents; samplers of diffusers by name."""

    denoiser = "unet"
    schedulers = SCHEDULERS

    def latent_shape(self, pipe: DiffusionPipeline, size: Size) -> tuple[int, int, int]:
        height, width = (side // pipe.vae_scale_factor for side in size)
        return pipe.unet.config.in_channels, height, width

    def multiple(self, pipe: DiffusionPipeline) -> int:
        return pipe.vae_scale_factor

    def bucket_step(self, pipe: DiffusionPipeline) -> int:
        return pipe.vae_scale_factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)

    def noise_schedule(self, pipe: DiffusionPipeline) -> NoiseSchedule:
        config = pipe.scheduler.config
        if config.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise UsageError(
                f"prediction_type={config.prediction_type} is not supported; use epsilon, v_prediction or sample"
            )
        alphas = DDIMScheduler.from_config(settings_of(pipe.scheduler)).alphas_cumprod.double().numpy()
        return DiffusionNoise(config.prediction_type, len(alphas), alphas)

    def sampler(self, pipe: DiffusionPipeline, name: str, steps: int, size: Size) -> Sampler:
        if name not in self.schedulers:
            raise UsageError(f"sampling.scheduler={name} must be one of {', '.join(self.schedulers)} for this model")
        levels = pipe.scheduler.config.num_train_timesteps
        if steps > levels:
            raise UsageError(f"sampling.steps={steps}: the model knows {levels} noise levels")
        kind, options = self.schedulers[name]
        scheduler = kind.from_config(settings_of(pipe.scheduler), **options)
        self.set_timesteps(pipe, scheduler, steps, size)
        divides = name == "ddim" and scheduler.config.prediction_type == "epsilon"
        if divides and (scheduler.alphas_cumprod[scheduler.timesteps] == 0).any():
            raise UsageError(
                f"sampling.scheduler={name} divides by the signal, and this model, which predicts noise, starts "
                "without any: take sampling.scheduler=euler"
            )
        return Sampler(scheduler)

    def set_timesteps(self, pipe: DiffusionPipeline, scheduler: SchedulerMixin, steps: int, size: Size) -> None:
        scheduler.set_timesteps(steps)


def settings_of(scheduler: SchedulerMixin) -> dict[str, Any]:
    """A scheduler's configuration for another class of scheduler.

    What a folder leaves out is the other class's default, but not where the pipeline corrected it as it was loaded, as
    `steps_offset` of old folders: `from_config` alone would lose that.
    """
    settings = dict(scheduler.config)
    defaults = {name: given.default for name, given in inspect.signature(type(scheduler).__init__).parameters.items()}
    left_out = settings.pop("_use_default_values", [])
    return {name: value for name, value in settings.items() if name not in left_out or value != defaults.get(name)}
