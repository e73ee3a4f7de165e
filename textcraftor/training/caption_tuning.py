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
from torch import Tensor, nn

from textcraftor.training.fitting import FitSettings, autocast, fit
from textcraftor.training.processes import processes_of_this_run


@dataclass(frozen=True)
class CaptionTuning:
    """Settings of the denoising loss.

    Args:
        batch_size: pictures per step, all processes together.
        caption_dropout: share of captions replaced by the empty one, so that guidance has a second branch.
        noise_bias: timesteps are drawn as T (1 - u ** noise_bias), u uniform: 1 is uniform, more than 1 prefers
            high noise, where the text decides.
        autocast: the dtype of the forward pass; weights, gradients and optimiser stay in fp32.
    """

    fit: FitSettings
    batch_size: int = 32
    caption_dropout: float = 0.1
    noise_bias: float = 1.0
    autocast: torch.dtype = torch.bfloat16


def denoising_loss(
    unet: UNet2DConditionModel,
    scheduler: SchedulerMixin,
    latents: Float[Tensor, "batch channels height width"],
    prompt_embeds: Float[Tensor, "batch tokens width"],
    noise_bias: float = 1.0,
) -> Float[Tensor, ""]:
    """Mean squared error on epsilon or v (Ho et al. 2020, eq. 14; Salimans & Ho 2022, appendix D)."""
    noise = torch.randn_like(latents)
    drawn = 1 - torch.rand(len(latents), device=latents.device) ** noise_bias
    count = scheduler.config.num_train_timesteps
    timesteps = (drawn * count).long().clamp(max=count - 1)
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
    text_encoder: nn.Module | None = None,
) -> None:
    """Train on cached latents, in place.

    Args:
        caption_of: draws a caption for a picture's index each time that the picture is shown.
        encode: captions to embeddings.
        text_encoder: the module behind `encode`, where it is to learn along.
    """
    device, processes = next(unet.parameters()).device, processes_of_this_run()
    if device.type == "cpu":
        # On CPUs the backward pass of fused attention in bf16 takes three times that of plain products.
        unet.set_attn_processor(AttnProcessor())

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((step, processes.process_index))
        indices = rng.choice(len(latents), settings.batch_size // processes.num_processes, replace=False)
        captions = ["" if rng.random() < settings.caption_dropout else caption_of(int(index), rng) for index in indices]
        prompt_embeds = encode(captions)
        batch = latents[torch.from_numpy(indices)].to(device).float()
        with autocast(device, settings.autocast):
            return {"mse": denoising_loss(unet, scheduler, batch, prompt_embeds, settings.noise_bias)}

    learning = nn.ModuleDict({"unet": unet} | ({"text_encoder": text_encoder} if text_encoder else {}))
    fit(name, learning, loss_of, settings.fit, folder)
