"""SDXL (Podell et al. 2023) and its kin: two CLIPs side by side, a pooled embedding, and the picture's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from textcraftor.models.base import Branch, Size, Version
from textcraftor.models.families.diffusion import Diffusion
from textcraftor.models.families.stable_diffusion import StableDiffusion
from textcraftor.models.original_names import CLIP, OPEN_CLIP, UNET, VAE, Naming


class StableDiffusionXL(Diffusion):
    """`StableDiffusionXLPipeline` and its siblings. Without a negative prompt the second branch is zeros.

    The last hidden state of both encoders is not used; of the first one nothing after it is.
    """

    pipelines = "StableDiffusionXL"
    single_files = {"conditioner.embedders.1.model.ln_final.weight": ("StableDiffusionXLPipeline", "sdxl")}
    text_encoders = ("text_encoder", "text_encoder_2")
    arguments = {"encoder_hidden_states": "prompt_embeds", "text_embeds": "pooled_prompt_embeds"}
    switchable = {"encoder_hidden_states": "prompt_embeds", "text_embeds": "add_text_embeds"}
    lora_targets = StableDiffusion.lora_targets | {"text_encoder_2": StableDiffusion.lora_targets["text_encoder"]}
    kohya = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2", "unet": "lora_unet"}
    kohya_readers = ("text_encoder", "text_encoder_2", "unet")

    def single_file_names(self, pipe: DiffusionPipeline) -> Mapping[str, Naming]:
        return {
            "unet": UNET.under("model.diffusion_model."),
            "vae": VAE.under("first_stage_model."),
            "text_encoder": CLIP.under("conditioner.embedders.0.transformer."),
            "text_encoder_2": OPEN_CLIP.under("conditioner.embedders.1.model."),
        }

    def version(self, pipe: DiffusionPipeline) -> Version:
        return Version("sdxl_base_v1-0", "stable-diffusion-xl-v1-base")

    def encode(self, reader: DiffusionPipeline, texts: Sequence[str], size: Size) -> Branch:
        device = reader.unet.device
        embeds, _, pooled, _ = reader.encode_prompt(list(texts), device=device, do_classifier_free_guidance=False)
        # Original size, crop and target size (section 2.2): the whole picture, not enlarged.
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=embeds.dtype, device=device).repeat(len(texts), 1)
        return Branch({"encoder_hidden_states": embeds, "text_embeds": pooled}, {"time_ids": ids})

    def no_prompt(self, pipe: DiffusionPipeline, branch: Branch) -> Branch | None:
        if not pipe.config.get("force_zeros_for_empty_prompt", True):
            return None
        return Branch({name: torch.zeros_like(one) for name, one in branch.mixed.items()}, branch.fixed)

    def predict(self, pipe: DiffusionPipeline, latents: Tensor, t: Tensor, branch: Branch, guidance: float) -> Tensor:
        added = {"text_embeds": branch.mixed["text_embeds"], **branch.fixed}
        return pipe.unet(latents, t, branch.mixed["encoder_hidden_states"], added_cond_kwargs=added).sample
