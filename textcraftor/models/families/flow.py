"""What families with a transformer and rectified flow share."""

from __future__ import annotations

import math

import numpy as np
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from textcraftor.errors import UsageError
from textcraftor.models.base import Family, Size
from textcraftor.models.noise import FlowNoise, NoiseSchedule
from textcraftor.models.sampler import FlowSampler, Sampler

CLIP_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
T5_TARGETS = ("q", "k", "v", "o")
ATTENTION_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


class Flow(Family):
    """A transformer that predicts the velocity; Euler's steps."""

    denoiser = "transformer"
    linear_sigmas = False  # whether the stock pipeline spaces the steps itself, before the shift

    def multiple(self, pipe: DiffusionPipeline) -> int:
        return pipe.vae_scale_factor * 2

    def noise_schedule(self, pipe: DiffusionPipeline) -> NoiseSchedule:
        return FlowNoise("velocity", pipe.scheduler.config.num_train_timesteps)

    def shift(self, pipe: DiffusionPipeline, size: Size, steps: int) -> float:
        """How much more time is spent at high noise for a larger picture (Esser et al. 2024, eq. 23)."""
        tokens = math.prod(self.latent_shape(pipe, size)[1:]) // 4
        get = pipe.scheduler.config.get
        least, most = get("base_image_seq_len", 256), get("max_image_seq_len", 4096)
        return calculate_shift(tokens, least, most, get("base_shift", 0.5), get("max_shift", 1.15))

    def sampler(self, pipe: DiffusionPipeline, name: str, steps: int, size: Size) -> Sampler:
        if name != "euler":
            raise UsageError(f"sampling.scheduler={name} must be euler for this model, which is a flow")
        config = pipe.scheduler.config
        if steps > config.num_train_timesteps:
            raise UsageError(f"sampling.steps={steps}: the model knows {config.num_train_timesteps} noise levels")
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        self.set_timesteps(pipe, scheduler, steps, size)
        return FlowSampler(scheduler)

    def set_timesteps(self, pipe: DiffusionPipeline, scheduler: SchedulerMixin, steps: int, size: Size) -> None:
        mu = self.shift(pipe, size, steps) if scheduler.config.get("use_dynamic_shifting") else None
        sigmas = np.linspace(1.0, 1 / steps, steps) if self.linear_sigmas else None
        scheduler.set_timesteps(steps, sigmas=sigmas, mu=mu)
