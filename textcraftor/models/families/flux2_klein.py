"""FLUX.2 [klein]: a language model, Qwen3, reads the prompt; three of its hidden states condition the transformer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from textcraftor.models.base import Branch, Size
from textcraftor.models.families.flow import ATTENTION_TARGETS, Flow


class Flux2Klein(Flow):
    """`Flux2KleinPipeline` and its siblings, distilled or not; the language model is read up to its 27th layer.

    Latents are (batch, channels, h, w) in patches of 2 x 2, standardised by the VAE's batch norm.
    """

    pipelines = "Flux2Klein"
    text_encoders = ("text_encoder",)
    arguments = {"encoder_hidden_states": "prompt_embeds"}
    switchable = {"encoder_hidden_states": "prompt_embeds"}
    joined = False
    lora_targets = {
        "text_encoder": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "denoiser": (*ATTENTION_TARGETS, "to_qkv_mlp_proj"),
    }
    hidden_layers = (9, 18, 27)
    linear_sigmas = True

    def encode(self, reader: DiffusionPipeline, texts: Sequence[str], size: Size) -> Branch:
        embeds, _ = reader.encode_prompt(list(texts), device=reader.transformer.device)
        return Branch({"encoder_hidden_states": embeds})

    def guided(self, pipe: DiffusionPipeline, guidance_scale: float) -> bool:
        return guidance_scale > 1 and not pipe.config.is_distilled

    def predict(self, pipe: DiffusionPipeline, latents: Tensor, t: Tensor, branch: Branch, guidance: float) -> Tensor:
        places = pipe._prepare_latent_ids(latents).to(latents.device)
        embeds = branch.mixed["encoder_hidden_states"]
        output = pipe.transformer(
            hidden_states=pipe._pack_latents(latents),
            timestep=t.expand(len(latents)).to(latents) / 1000,
            guidance=None,
            encoder_hidden_states=embeds,
            txt_ids=pipe._prepare_text_ids(embeds).to(latents.device),
            img_ids=places,
        ).sample
        return output.transpose(1, 2).unflatten(2, latents.shape[2:])

    def latent_shape(self, pipe: DiffusionPipeline, size: Size) -> tuple[int, int, int]:
        height, width = (side // (pipe.vae_scale_factor * 2) for side in size)
        return pipe.transformer.config.in_channels, height, width

    def shift(self, pipe: DiffusionPipeline, size: Size, steps: int) -> float:
        return compute_empirical_mu(math.prod(self.latent_shape(pipe, size)[1:]), steps)

    def to_latents(self, pipe: DiffusionPipeline, encoded: Tensor) -> Tensor:
        mean, sd = _moments(pipe, encoded)
        return (pipe._patchify_latents(encoded) - mean) / sd

    def from_latents(self, pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
        mean, sd = _moments(pipe, latents)
        return pipe._unpatchify_latents(latents * sd + mean)


def _moments(pipe: DiffusionPipeline, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel, as the VAE's batch norm keeps them."""
    norm = pipe.vae.bn
    mean, variance = (one.view(1, -1, 1, 1).to(like) for one in (norm.running_mean, norm.running_var))
    return mean, torch.sqrt(variance + pipe.vae.config.batch_norm_eps)
