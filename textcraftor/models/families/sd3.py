"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): two CLIPs and, where memory allows, a T5, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffusers import DiffusionPipeline
from torch import Tensor

from textcraftor.models.base import Branch, Size, Version
from textcraftor.models.families.flow import ATTENTION_TARGETS, CLIP_TARGETS, T5_TARGETS, Flow
from textcraftor.models.original_names import CLIP, SD3, T5, VAE, Naming


class StableDiffusion3(Flow):
    """`StableDiffusion3Pipeline` and its siblings; without a T5 its tokens are zeros."""

    pipelines = "StableDiffusion3"
    single_files = {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": ("StableDiffusion3Pipeline", None)}
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    arguments = {"encoder_hidden_states": "prompt_embeds", "pooled_projections": "pooled_prompt_embeds"}
    switchable = arguments
    lora_targets = {
        "text_encoder": CLIP_TARGETS,
        "text_encoder_2": CLIP_TARGETS,
        "text_encoder_3": T5_TARGETS,
        "denoiser": ATTENTION_TARGETS,
    }
    kohya = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2", "text_encoder_3": "lora_te3"}

    def single_file_names(self, pipe: DiffusionPipeline) -> Mapping[str, Naming]:
        return {
            "transformer": SD3.under("model.diffusion_model."),
            "vae": VAE.under("first_stage_model."),
            "text_encoder": CLIP.under("text_encoders.clip_l.transformer."),
            "text_encoder_2": CLIP.under("text_encoders.clip_g.transformer."),
            "text_encoder_3": T5.under("text_encoders.t5xxl.transformer."),
        }

    def version(self, pipe: DiffusionPipeline) -> Version:
        return Version("sd3", "stable-diffusion-3")

    def encode(self, reader: DiffusionPipeline, texts: Sequence[str], size: Size) -> Branch:
        embeds, _, pooled, _ = reader.encode_prompt(
            list(texts), None, None, device=reader.transformer.device, do_classifier_free_guidance=False
        )
        return Branch({"encoder_hidden_states": embeds, "pooled_projections": pooled})

    def predict(self, pipe: DiffusionPipeline, latents: Tensor, t: Tensor, branch: Branch, guidance: float) -> Tensor:
        return pipe.transformer(latents, timestep=t.expand(len(latents)).to(latents.device), **branch.mixed).sample

    def latent_shape(self, pipe: DiffusionPipeline, size: Size) -> tuple[int, int, int]:
        height, width = (side // pipe.vae_scale_factor for side in size)
        return pipe.transformer.config.in_channels, height, width
