"""Stable Diffusion 1.x and 2.x, and everything else that is laid out as a `StableDiffusionPipeline` folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel

from textcraftor.errors import UsageError
from textcraftor.models.base import Conditioning


class StableDiffusion:
    """A frozen pipeline's parts and its text encoders by name; `original` is the pipeline's own.

    Args:
        pipeline: any `StableDiffusionPipeline`; its sampler is replaced by DDIM with the same noise schedule.
    """

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self.tokenizer = pipeline.tokenizer
        self.unet = pipeline.unet.eval().requires_grad_(False)
        self.vae = pipeline.vae.eval().requires_grad_(False)
        self.text_encoders: dict[str, CLIPTextModel] = {"original": pipeline.text_encoder.eval().requires_grad_(False)}
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
        self.vae_scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._negative_embeds: dict[str, Tensor] = {}

    @classmethod
    def load(cls, path: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> StableDiffusion:
        """Load a diffusers folder, a single-file `.safetensors` checkpoint or a hub id.

        Raises:
            UsageError: a local path that is not there, or a folder that is no pipeline.
        """
        local = Path(path)
        looks_local = path.startswith((".", "/", "~")) or local.suffix in (".safetensors", ".ckpt")
        if looks_local and not local.exists():
            raise UsageError(
                f"model.path={path} does not exist: give a diffusers folder, a .safetensors file or a hub id"
            )
        if local.is_dir() and not (local / "model_index.json").exists():
            raise UsageError(f"model.path={path} has no model_index.json: it is not a diffusers pipeline folder")
        options = {"dtype": dtype, "safety_checker": None, "requires_safety_checker": False}
        if local.is_file():
            pipeline = StableDiffusionPipeline.from_single_file(path, **options)
        else:
            pipeline = StableDiffusionPipeline.from_pretrained(path, **options)
        return cls(pipeline.to(device))

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts with words that the tokenizer does not know; warn once of those that are too long."""
        unknown = self.tokenizer.unk_token_id
        for prompt in prompts:
            ids = self.tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
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
        return torch.stack(drawn).to(self.device, self.unet.dtype) * self.scheduler.init_noise_sigma

    def timesteps(self, steps: int) -> Tensor:
        self.scheduler.set_timesteps(steps)
        return self.scheduler.timesteps

    def predict(
        self,
        latents: Float[Tensor, "batch channels h w"],
        t: Tensor,
        prompt_embeds: Float[Tensor, "batch tokens width"],
    ) -> Float[Tensor, "batch channels h w"]:
        return self.unet(latents, t, encoder_hidden_states=prompt_embeds.to(latents.dtype)).sample

    def step(
        self,
        output: Float[Tensor, "batch channels h w"],
        t: Tensor,
        latents: Float[Tensor, "batch channels h w"],
    ) -> Float[Tensor, "batch channels h w"]:
        """DDIM with eta 0 (Song et al. 2021, eq. 12)."""
        return self.scheduler.step(output, t, latents).prev_sample

    def decode(self, latents: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 3 height width"]:
        images = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return (images / 2 + 0.5).clamp(0, 1)
