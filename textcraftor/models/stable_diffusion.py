"""Stable Diffusion 1.x and 2.x, and everything else that is laid out as a `StableDiffusionPipeline` folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
)
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel

from textcraftor.assets import loading
from textcraftor.errors import UsageError
from textcraftor.models.base import Conditioning

# Deterministic samplers, and what their configuration must say for latents.
SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
}


class StableDiffusion:
    """A frozen pipeline's parts and its text encoders by name; `original` is the pipeline's own.

    Args:
        pipeline: `StableDiffusionPipeline` or one of its siblings; of its sampler only the configuration is used.
    """

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.tokenizer = pipeline.tokenizer
        self.unet = pipeline.unet.eval().requires_grad_(False)
        self.vae = pipeline.vae.eval().requires_grad_(False)
        self.text_encoders: dict[str, CLIPTextModel] = {"original": pipeline.text_encoder.eval().requires_grad_(False)}
        self.scheduler_config = pipeline.scheduler.config
        self.alphas_cumprod = DDIMScheduler.from_config(self.scheduler_config).alphas_cumprod.double().numpy()
        self.vae_scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.compute_dtype = torch.float32
        self.tuned_unet = False  # whether its weights are those of a run
        self._negative_embeds: dict[str, Tensor] = {}

    @classmethod
    def load(cls, path: str, device: str = "cpu") -> StableDiffusion:
        """Load a diffusers folder, a single-file `.safetensors` checkpoint or a hub id.

        Raises:
            UsageError: a local path that is not there, or a folder that is no pipeline.
        """
        local = Path(path).expanduser()
        looks_local = path.startswith((".", "/", "~")) or local.suffix in (".safetensors", ".ckpt")
        if looks_local and not local.exists():
            raise UsageError(
                f"model.path={path} does not exist: give a diffusers folder, a .safetensors file or a hub id"
            )
        if local.is_dir() and not (local / "model_index.json").exists():
            raise UsageError(f"model.path={path} has no model_index.json: it is not a diffusers pipeline folder")
        options = {"dtype": torch.float32, "safety_checker": None, "requires_safety_checker": False}
        read = StableDiffusionPipeline.from_single_file if local.is_file() else StableDiffusionPipeline.from_pretrained
        with loading(path, "model.path", "a Stable Diffusion pipeline"):
            pipeline = read(str(local) if local.exists() else path, **options)
        return cls(pipeline.to(device))

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts with words that the tokenizer does not know; warn once of those that are too long."""
        unknown = self.tokenizer.unk_token_id
        tokens = self.tokenizer(list(prompts), add_special_tokens=False, truncation=False, verbose=False)
        for prompt, ids in zip(prompts, tokens.input_ids, strict=True):
            if unknown in ids:
                pieces = prompt.replace('"', " ").replace(",", " ").split()
                words = [w for w in pieces if unknown in self.tokenizer(w, add_special_tokens=False).input_ids]
                raise UsageError(
                    f"prompt {prompt!r}: this model's tokenizer does not know {', '.join(words) or 'some of its signs'}"
                )
            if len(ids) + 2 > self.tokenizer.model_max_length:
                warnings.warn(
                    f"prompt {prompt!r}: its end, past token {self.tokenizer.model_max_length - 2}, is cut off",
                    stacklevel=2,
                )

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], encoder: str = "original"
    ) -> Conditioning:
        """Embed prompts; a prompt that occurs several times, as the empty one does, is encoded once."""
        if len(prompts) != len(negative_prompts):
            raise UsageError(f"{len(negative_prompts)} negative prompts for {len(prompts)} prompts: give one each")
        if encoder == "original":
            new = [prompt for prompt in dict.fromkeys(negative_prompts) if prompt not in self._negative_embeds]
            if new:
                self._negative_embeds |= dict(zip(new, self._embed(new, encoder), strict=True))
            negative = torch.stack([self._negative_embeds[prompt] for prompt in negative_prompts])
            return Conditioning(self._embed(prompts, encoder), negative)
        embeds = self._embed([*prompts, *negative_prompts], encoder)
        return Conditioning(embeds[: len(prompts)], embeds[len(prompts) :])

    def _embed(self, prompts: Sequence[str], encoder: str) -> Float[Tensor, "batch tokens width"]:
        distinct = list(dict.fromkeys(prompts))
        tokens = self.tokenizer(distinct, padding="max_length", truncation=True, return_tensors="pt")
        embeds = self.text_encoders[encoder](tokens.input_ids.to(self.device)).last_hidden_state
        return embeds[[distinct.index(prompt) for prompt in prompts]]

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Float[Tensor, "batch channels h w"]:
        """The noise that the stock pipeline draws from `[torch.Generator().manual_seed(s) for s in seeds]`."""
        if height % self.vae_scale or width % self.vae_scale:
            raise UsageError(f"size {height}x{width}: both must be multiples of {self.vae_scale}")
        shape = (self.unet.config.in_channels, height // self.vae_scale, width // self.vae_scale)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(drawn).to(self.device, torch.promote_types(self.unet.dtype, torch.float32))

    def scheduler(self, name: str, steps: int) -> SchedulerMixin:
        """The sampler of that name with the pipeline's noise schedule, ready for its first step."""
        if steps > len(self.alphas_cumprod):
            raise UsageError(f"sampling.steps={steps}: the model knows {len(self.alphas_cumprod)} noise levels")
        kind, options = SCHEDULERS[name]
        scheduler = kind.from_config(self.scheduler_config, **options)
        scheduler.set_timesteps(steps)
        return scheduler

    def predict(
        self,
        latents: Float[Tensor, "batch channels h w"],
        t: Tensor,
        prompt_embeds: Float[Tensor, "batch tokens width"],
    ) -> Float[Tensor, "batch channels h w"]:
        """In the frozen parts' precision, also where the UNet learns in fp32; returns the latents' dtype."""
        dtype = self.unet.dtype
        mixed = dtype == torch.float32 != self.compute_dtype
        with torch.autocast(self.device.type, self.compute_dtype, enabled=mixed):
            output = self.unet(latents.to(dtype), t, encoder_hidden_states=prompt_embeds.to(dtype)).sample
        return output.to(latents.dtype)

    def to_x0(
        self,
        output: Float[Tensor, "batch channels h w"],
        t: Tensor,
        latents: Float[Tensor, "batch channels h w"],
    ) -> Float[Tensor, "batch channels h w"]:
        """From epsilon (Song et al. 2021, eq. 9), v (Salimans & Ho 2022, section 4) or x0 itself."""
        signal, noise = self._levels(t)
        match self.scheduler_config.prediction_type:
            case "epsilon":
                return (latents - noise * output) / signal
            case "v_prediction":
                return signal * latents - noise * output
            case "sample":
                return output
            case other:
                raise UsageError(f"prediction_type={other} is not supported; use epsilon, v_prediction or sample")

    def add_noise(
        self, latents: Float[Tensor, "batch channels h w"], noise: Float[Tensor, "batch channels h w"], t: Tensor
    ) -> Float[Tensor, "batch channels h w"]:
        signal, strength = self._levels(t)
        return signal * latents + strength * noise

    def _levels(self, t: Tensor) -> tuple[float, float]:
        """The shares of signal and noise at a timestep; between two timesteps as samplers in sigma interpolate."""
        sigmas = np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)
        sigma = float(np.interp(float(t), np.arange(len(sigmas)), sigmas))
        return (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5

    def checkpoint_blocks(self, unet: bool, decoder: bool) -> None:
        for part, wanted in ((self.unet, unet), (self.vae, decoder)):
            if wanted:
                part.enable_gradient_checkpointing()
            else:
                part.disable_gradient_checkpointing()

    def decode(self, latents: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 3 height width"]:
        """Picture by picture where that saves memory: the decoder's activations are the largest of all."""
        if not torch.is_grad_enabled():
            return torch.cat([self._decode(one) for one in latents.split(1)])
        if self.vae.is_gradient_checkpointing:
            return torch.cat([checkpoint(self._decode, one, use_reentrant=False) for one in latents.split(1)])
        return self._decode(latents)

    def _decode(self, latents: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 3 height width"]:
        images = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return (images / 2 + 0.5).clamp(0, 1)
