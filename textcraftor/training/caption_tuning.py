"""Tunes a UNet on captioned pictures by the denoising loss: the sibling of reward tuning that needs data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float
from torch import Tensor

from textcraftor.training.fitting import FitSettings, fit, processes_of_this_run


@dataclass(frozen=True)
class CaptionTuning:
    """Settings of the denoising loss.

    Args:
        batch_size: pictures per step, all processes together.
        caption_dropout: share of captions replaced by the empty one, so that guidance has a second branch.
        autocast: the dtype of the forward pass; weights, gradients and optimiser stay in fp32.
    """

    fit: FitSettings
    batch_size: int = 32
    caption_dropout: float = 0.1
    autocast: torch.dtype = torch.bfloat16


def denoising_loss(
    unet: UNet2DConditionModel,
    scheduler: SchedulerMixin,
    latents: Float[Tensor, "batch channels height width"],
    prompt_embeds: Float[Tensor, "batch tokens width"],
) -> Float[Tensor, ""]:
    """Mean squared error on epsilon or v at uniform timesteps (Ho et al. 2020, eq. 14; Salimans & Ho 2022)."""
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    match scheduler.config.prediction_type:
        case "epsilon":
            target = noise
        case "v_prediction":
            target = scheduler.get_velocity(latents, noise, timesteps)
        case other:
            raise ValueError(f"prediction_type={other!r} cannot be trained; use epsilon or v_prediction")
    output = unet(noisy, timesteps, encoder_hidden_states=prompt_embeds).sample
    return torch.nn.functional.mse_loss(output.float(), target)


def tune_on_captions(
    unet: UNet2DConditionModel,
    scheduler: SchedulerMixin,
    latents: Float[Tensor, "pictures channels height width"],
    caption_of: Callable[[int, np.random.Generator], str],
    encode: Callable[[list[str]], Float[Tensor, "batch tokens width"]],
    settings: CaptionTuning,
    folder: Path,
    name: str = "unet",
) -> UNet2DConditionModel:
    """Train on cached latents; `caption_of(index, rng)` draws a caption each time a picture is shown."""
    device, processes = next(unet.parameters()).device, processes_of_this_run()
    if device.type == "cpu":
        # On CPUs the backward pass of fused attention in bf16 takes three times that of plain products.
        unet.set_attn_processor(AttnProcessor())

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((step, processes.process_index))
        indices = rng.choice(len(latents), settings.batch_size // processes.num_processes, replace=False)
        captions = ["" if rng.random() < settings.caption_dropout else caption_of(int(index), rng) for index in indices]
        with torch.no_grad():
            prompt_embeds = encode(captions)
        batch = latents[torch.from_numpy(indices)].to(device).float()
        with torch.autocast(device.type, settings.autocast):
            return {"mse": denoising_loss(unet, scheduler, batch, prompt_embeds)}

    fit(name, unet, loss_of, settings.fit, folder)
    return unet
