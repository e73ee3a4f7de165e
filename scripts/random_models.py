"""Stable Diffusion folders with random weights: `python scripts/random_models.py sd15 FOLDER` (--tiny for tests).

Every configuration value that tells the published layouts apart is theirs; --tiny shrinks widths and depths alone.
`small` is nobody's: a UNet of 25 million weights, for figures from a laptop. The benchmark takes models and scorers
from here without writing them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from textcraftor.models.stable_diffusion import StableDiffusion
from textcraftor.rewards.aesthetic import Aesthetic, LinearHead
from textcraftor.rewards.clip import ClipScore, PickScore
from textcraftor.rewards.hpsv2 import HPSv2
from textcraftor.rewards.open_clip import architecture_config

TOKENIZER = Path(__file__).parent.parent / "textcraftor" / "toybox" / "weights" / "pipeline" / "tokenizer"
NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


@dataclass(frozen=True)
class Layout:
    """What tells a model from the others.

    Args:
        text: width, layers, heads of the text encoder.
        unet, tiny_unet: configuration of the UNet, and what is smaller of it with --tiny.
        decoder: channels of the VAE.
    """

    text: tuple[int, int, int]
    hidden_act: str
    unet: Mapping[str, Any]
    tiny_unet: Mapping[str, Any] = field(default_factory=dict)
    decoder: tuple[int, ...] = (128, 256, 512, 512)
    scheduler: Callable[[], Any] = lambda: PNDMScheduler(**NOISE, skip_prk_steps=True)


WIDTHS = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "norm_num_groups": 32}
TINY = {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 32}
SD15 = Layout(
    (768, 12, 12),
    "quick_gelu",
    WIDTHS | {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
    TINY,
)
SD21 = Layout(  # ViT-H/14's text tower without its last layer
    (1024, 23, 16),
    "gelu",
    WIDTHS
    | {
        "sample_size": 96,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "cross_attention_dim": 1024,
    },
    TINY | {"attention_head_dim": [2, 2, 4, 4]},
    scheduler=lambda: DDIMScheduler(**NOISE, clip_sample=False, prediction_type="v_prediction"),
)
SDXL = Layout(  # of its two text encoders the one that TextCraftor tunes
    (768, 12, 12),
    "quick_gelu",
    {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
)
SMALL = Layout(
    (256, 4, 4),
    "quick_gelu",
    {
        "sample_size": 32,
        "block_out_channels": (64, 128, 192, 224),
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "attention_head_dim": 4,
        "cross_attention_dim": 256,
    },
    decoder=(32, 64, 128, 128),
)
LAYOUTS = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL, "small": SMALL}


def make_pipeline(layout: str, tiny: bool = False) -> StableDiffusionPipeline:
    """A pipeline with random weights, the same ones each time."""
    torch.manual_seed(0)
    chosen, tokenizer = LAYOUTS[layout], CLIPTokenizer.from_pretrained(TOKENIZER)
    width, layers, heads = (32, 2, 4) if tiny else chosen.text
    text = CLIPTextConfig(
        vocab_size=len(tokenizer) if tiny else 49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=chosen.hidden_act,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    channels = (4, 4, 8, 8) if tiny else chosen.decoder
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1 if tiny else 2,
        latent_channels=4,
        norm_num_groups=4 if tiny else 32,
        sample_size=512,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**dict(chosen.unet) | (dict(chosen.tiny_unet) if tiny else {})),
        scheduler=chosen.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


class StableDiffusionXL(StableDiffusion):
    """SDXL's UNet, for its costs: its other text encoder's embeddings, and its sizes, are always the same."""

    def predict(self, latents: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        rows, tokens, width = prompt_embeds.shape
        other = prompt_embeds.new_zeros(rows, tokens, self.unet.config.cross_attention_dim - width)
        added = {"text_embeds": other[:, 0, :1280], "time_ids": other.new_zeros(rows, 6)}
        output = self.unet(
            latents.to(self.unet.dtype),
            t,
            encoder_hidden_states=torch.cat([prompt_embeds, other], -1).to(self.unet.dtype),
            added_cond_kwargs={name: value.to(self.unet.dtype) for name, value in added.items()},
        ).sample
        return output.to(latents.dtype)


def load_model(path: str, device: str = "cpu") -> StableDiffusion:
    """As `StableDiffusion.load`, with the name of a layout."""
    kind = StableDiffusionXL if path == "sdxl" else StableDiffusion
    return kind(make_pipeline(path).to(device))


def _clip(architecture: str) -> tuple[CLIPModel, CLIPTokenizer]:
    return CLIPModel(architecture_config(architecture)), CLIPTokenizer.from_pretrained(TOKENIZER)


def load_aesthetic(architecture: str) -> Aesthetic:
    config = architecture_config(architecture)
    return Aesthetic(CLIPVisionModelWithProjection(config.vision_config), LinearHead(config.projection_dim))


def load_hpsv2(architecture: str) -> HPSv2:
    return HPSv2(*_clip(architecture))


def load_pickscore(architecture: str) -> PickScore:
    return PickScore(*_clip(architecture))


def load_clip(architecture: str) -> ClipScore:
    return ClipScore(*_clip(architecture))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layout", choices=[name for name in LAYOUTS if name != "sdxl"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    make_pipeline(arguments.layout, arguments.tiny).save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
