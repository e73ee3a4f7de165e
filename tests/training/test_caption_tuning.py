"""The denoising loop: its loss against a closed form, its resume against an uninterrupted run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from textcraftor.training.caption_tuning import CaptionTuning, denoising_loss, tune_on_captions
from textcraftor.training.fitting import FitSettings


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )


class Constant(torch.nn.Module):
    """A denoiser that always answers zero, so that the loss is its target's mean square."""

    def forward(self, noisy, timesteps, encoder_hidden_states):
        return type("Output", (), {"sample": torch.zeros_like(noisy)})


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_of_a_zero_answer_is_the_mean_square_of_the_published_target(kind):
    scheduler = DDIMScheduler(prediction_type=kind)
    latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    loss = denoising_loss(Constant(), scheduler, latents, torch.zeros(6, 2, 8))
    torch.manual_seed(3)
    noise, t = torch.randn_like(latents), ((1 - torch.rand(6)) * 1000).long()
    alpha = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    target = noise if kind == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    torch.testing.assert_close(loss, target.pow(2).mean())


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    latents = torch.randn(12, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def train(folder, stop_after=None):
        folder.mkdir(exist_ok=True)
        seen = []

        def encode(captions):
            seen.append(captions)
            if stop_after is not None and len(seen) > stop_after:
                raise KeyboardInterrupt
            return torch.stack([torch.full((2, 8), float(len(caption))) for caption in captions])

        def caption_of(index: int, rng: np.random.Generator) -> str:
            return "a" * int(rng.integers(1, 4))

        settings = CaptionTuning(FitSettings(6, 1e-3, warmup=1, ema_decay=0.9, save_every=2), batch_size=4)
        unet = tiny_unet()
        tune_on_captions(unet, DDIMScheduler(), latents, caption_of, encode, settings, folder)
        return unet.state_dict()

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", stop_after=5)
    resumed = train(tmp_path / "parts")
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
