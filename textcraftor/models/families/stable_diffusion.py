"""Stable Diffusion 1.x and 2.x: one CLIP, whose hidden states the UNet reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffusers import DiffusionPipeline
from torch import Tensor

from textcraftor.models.base import Branch, Size, Version
from textcraftor.models.families.diffusion import Diffusion
from textcraftor.models.original_names import CLIP, OPEN_CLIP, UNET, VAE, Naming


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

    def single_file_names(self, pipe: DiffusionPipeline) -> Mapping[str, Naming]:
        if pipe.unet.config.addition_embed_type is not None:  # as the toybox's: the original UNet has no place for it
            return {}
        reader = OPEN_CLIP.under("cond_stage_model.model.")
        if not self.reads_open_clip(pipe):
            reader = CLIP.under("cond_stage_model.transformer.")
        return {
            "unet": UNET.under("model.diffusion_model."),
            "vae": VAE.under("first_stage_model."),
            "text_encoder": reader,
        }

    def version(self, pipe: DiffusionPipeline) -> Version:
        if not self.reads_open_clip(pipe):
            return Version("sd_v1", "stable-diffusion-v1")
        if pipe.scheduler.config.get("prediction_type") == "v_prediction":
            return Version("sd_v2_v", "stable-diffusion-v2-768-v")
        return Version("sd_v2", "stable-diffusion-v2-512")

    def reads_open_clip(self, pipe: DiffusionPipeline) -> bool:
        """Whether this is 2.x, whose CLIP is OpenCLIP's; OpenAI's has another activation."""
        return pipe.text_encoder.config.hidden_act != "quick_gelu"

    def encode(self, reader: DiffusionPipeline, texts: Sequence[str], size: Size) -> Branch:
        embeds, _ = reader.encode_prompt(list(texts), reader.unet.device, 1, False)
        return Branch({"encoder_hidden_states": embeds})

    def predict(self, pipe: DiffusionPipeline, latents: Tensor, t: Tensor, branch: Branch, guidance: float) -> Tensor:
        return pipe.unet(latents, t, **branch.mixed).sample
