"""Stable Diffusion 1.x and 2.x: one CLIP, whose hidden states the UNet reads."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import DiffusionPipeline
from torch import Tensor

from textcraftor.models.base import Branch, Size
from textcraftor.models.families.diffusion import Diffusion


class StableDiffusion(Diffusion):
    """`StableDiffusionPipeline` and its siblings."""

    pipelines = "StableDiffusion"
    single_files = {
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": ("StableDiffusionPipeline", "sd15"),
        "cond_stage_model.model.ln_final.weight": ("StableDiffusionPipeline", "sd21"),
    }
    text_encoders = ("text_encoder",)
    arguments = {"encoder_hidden_states": "prompt_embeds"}
    switchable = {"encoder_hidden_states": "prompt_embeds"}
    lora_targets = {
        "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
        "denoiser": ("to_q", "to_k", "to_v", "to_out.0"),
    }
    kohya = {"text_encoder": "lora_te", "unet": "lora_unet"}
    kohya_readers = ("text_encoder", "unet")
    load_options = {"safety_checker": None, "requires_safety_checker": False}

    def encode(self, reader: DiffusionPipeline, texts: Sequence[str], size: Size) -> Branch:
        embeds, _ = reader.encode_prompt(list(texts), reader.unet.device, 1, False)
        return Branch({"encoder_hidden_states": embeds})

    def predict(self, pipe: DiffusionPipeline, latents: Tensor, t: Tensor, branch: Branch, guidance: float) -> Tensor:
        return pipe.unet(latents, t, **branch.mixed).sample
