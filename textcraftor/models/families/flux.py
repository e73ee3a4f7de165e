"""FLUX.1: a T5 whose hidden states the transformer reads, and a CLIP whose pooled output acts on all of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffusers import DiffusionPipeline
from torch import Tensor

from textcraftor.models.base import Branch, Size, Version
from textcraftor.models.families.flow import ATTENTION_TARGETS, CLIP_TARGETS, T5_TARGETS, Flow
from textcraftor.models.original_names import CLIP, FLUX, T5, VAE, Naming

PUBLISHED_WIDTH = 3072  # of all of FLUX.1, and the only one that diffusers reads from single files


class Flux(Flow):
    """`FluxPipeline` and its siblings. The dev model is distilled from guidance: one branch, which embeds the scale.

    Latents are (batch, channels, h, w) outside; the transformer reads them in patches of 2 x 2.
    """

    pipelines = "Flux"
    single_files = {
        "double_blocks.0.img_attn.qkv.weight": ("FluxPipeline", None),
        "model.diffusion_model.double_blocks.0.img_attn.qkv.weight": ("FluxPipeline", None),
    }
    text_encoders = ("text_encoder", "text_encoder_2")
    arguments = {"encoder_hidden_states": "prompt_embeds", "pooled_projections": "pooled_prompt_embeds"}
    switchable = {"encoder_hidden_states": "prompt_embeds"}
    joined = False
    lora_targets = {"text_encoder": CLIP_TARGETS, "text_encoder_2": T5_TARGETS, "denoiser": ATTENTION_TARGETS}
    kohya = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te3"}
    kohya_readers = ("text_encoder",)
    hidden_layers = ()
    linear_sigmas = True

    def single_file_names(self, pipe: DiffusionPipeline) -> Mapping[str, Naming]:
        if pipe.transformer.inner_dim != PUBLISHED_WIDTH:
            return {}
        return {
            "transformer": FLUX.under("model.diffusion_model."),
            "vae": VAE.under("vae."),
            "text_encoder": CLIP.under("text_encoders.clip_l.transformer."),
            "text_encoder_2": T5.under("text_encoders.t5xxl.transformer."),
        }

    def version(self, pipe: DiffusionPipeline) -> Version:
        kind = "dev" if pipe.transformer.config.guidance_embeds else "schnell"
        return Version("flux1", f"flux-1-{kind}")

    def encode(self, reader: DiffusionPipeline, texts: Sequence[str], size: Size) -> Branch:
        embeds, pooled, _ = reader.encode_prompt(list(texts), None, device=reader.transformer.device)
        return Branch({"encoder_hidden_states": embeds, "pooled_projections": pooled})

    def guided(self, pipe: DiffusionPipeline, guidance_scale: float) -> bool:
        return False

    def predict(self, pipe: DiffusionPipeline, latents: Tensor, t: Tensor, branch: Branch, guidance: float) -> Tensor:
        batch, channels, height, width = latents.shape
        scale = latents.new_full((batch,), guidance) if pipe.transformer.config.guidance_embeds else None
        tokens = branch.mixed["encoder_hidden_states"].shape[1]
        output = pipe.transformer(
            hidden_states=pipe._pack_latents(latents, batch, channels, height, width),
            timestep=t.expand(batch).to(latents) / 1000,
            guidance=scale,
            txt_ids=latents.new_zeros(tokens, 3),
            img_ids=pipe._prepare_latent_image_ids(batch, height // 2, width // 2, latents.device, latents.dtype),
            **branch.mixed,
        ).sample
        factor = pipe.vae_scale_factor
        return pipe._unpack_latents(output, height * factor, width * factor, factor)

    def latent_shape(self, pipe: DiffusionPipeline, size: Size) -> tuple[int, int, int]:
        height, width = (2 * (side // (pipe.vae_scale_factor * 2)) for side in size)
        return pipe.transformer.config.in_channels // 4, height, width
