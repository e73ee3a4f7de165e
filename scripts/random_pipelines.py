"""Stable Diffusion folders with random weights: `python scripts/random_pipelines.py sd15 FOLDER` (--tiny for tests).

Every configuration value that tells the published layouts apart is theirs; --tiny shrinks widths and depths alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENIZER = Path(__file__).parent.parent / "textcraftor" / "toybox" / "weights" / "pipeline" / "tokenizer"
NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def text_encoder(layout: str, tiny: bool, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """ViT-L/14's text tower in SD 1.5; ViT-H/14's without its last layer in SD 2.1."""
    sd15 = layout == "sd15"
    width, layers, heads = (768, 12, 12) if sd15 else (1024, 23, 16)
    if tiny:
        width, layers, heads = 32, 2, 4
    config = CLIPTextConfig(
        vocab_size=49408 if not tiny else len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act="quick_gelu" if sd15 else "gelu",
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def unet(layout: str, tiny: bool, cross_attention_dim: int) -> UNet2DConditionModel:
    channels = (8, 16, 16, 16) if tiny else (320, 640, 1280, 1280)
    heads = (
        {"attention_head_dim": 8}
        if layout == "sd15"
        else {
            "attention_head_dim": [2, 2, 4, 4] if tiny else [5, 10, 20, 20],
            "use_linear_projection": True,
        }
    )
    return UNet2DConditionModel(
        sample_size=64 if layout == "sd15" else 96,
        block_out_channels=channels,
        layers_per_block=1 if tiny else 2,
        norm_num_groups=4 if tiny else 32,
        cross_attention_dim=cross_attention_dim,
        **heads,
    )


def vae(tiny: bool) -> AutoencoderKL:
    channels = (4, 4, 8, 8) if tiny else (128, 256, 512, 512)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if tiny else 2,
        latent_channels=4,
        norm_num_groups=4 if tiny else 32,
        sample_size=512,
    )


def make_pipeline(layout: str, folder: Path, tiny: bool) -> None:
    """Write a diffusers folder as `layout` (sd15 or sd21) has it."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    encoder = text_encoder(layout, tiny, tokenizer)
    if layout == "sd15":
        scheduler = PNDMScheduler(**NOISE, skip_prk_steps=True)
    else:
        scheduler = DDIMScheduler(**NOISE, clip_sample=False, prediction_type="v_prediction")
    StableDiffusionPipeline(
        vae=vae(tiny),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet(layout, tiny, encoder.config.hidden_size),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layout", choices=["sd15", "sd21"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    make_pipeline(arguments.layout, arguments.folder, arguments.tiny)


if __name__ == "__main__":
    main()
