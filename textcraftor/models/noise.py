"""Signal and noise at each timestep: the one place where predictions turn into clean latents, noise and velocity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample", "velocity"]
Level = float | Tensor  # of one timestep, or (batch, 1, 1, 1)
LEAST_SIGNAL = (
    2.0**-12
)  # that a prediction of noise is divided by; where there is none, diffusers' samplers in sigma too


@dataclass(frozen=True)
class NoiseSchedule:
    """x_t = signal_t x_0 + noise_t e, and what the denoiser says of it.

    Args:
        prediction: epsilon (Ho et al. 2020), v (Salimans & Ho 2022, section 4), x_0 itself, or the velocity e - x_0 of
            rectified flow (Liu et al. 2022).
        timesteps: of training.
    """

    prediction: Prediction
    timesteps: int

    def level(self, t: float) -> tuple[float, float]:
        """The shares of signal and noise at one timestep."""
        raise NotImplementedError

    def levels(self, t: Tensor | float) -> tuple[Level, Level]:
        """The shares of signal and noise at one timestep, or at each of (batch,)."""
        if not isinstance(t, Tensor) or t.ndim == 0:
            return self.level(float(t))
        pairs = torch.tensor([self.level(float(one)) for one in t], dtype=torch.float64)
        signal, noise = pairs.to(t.device, torch.float32)[:, :, None, None, None].unbind(1)
        return signal, noise

    def x0_and_noise(
        self, output: Float[Tensor, "batch channels h w"], t: Tensor, latents: Float[Tensor, "batch channels h w"]
    ) -> tuple[Float[Tensor, "batch channels h w"], Float[Tensor, "batch channels h w"]]:
        """The clean latents and the noise that an output of the denoiser at these latents stands for."""
        signal, noise = self.levels(t)
        match self.prediction:
            case "epsilon":
                divisor = signal.clamp(min=LEAST_SIGNAL) if isinstance(signal, Tensor) else max(signal, LEAST_SIGNAL)
                return (latents - noise * output) / divisor, output
            case "v_prediction":
                return signal * latents - noise * output, noise * latents + signal * output
            case "sample":
                return output, (latents - signal * output) / noise
            case "velocity":
                return latents - noise * output, latents + signal * output

    def to_x0(
        self, output: Float[Tensor, "batch channels h w"], t: Tensor, latents: Float[Tensor, "batch channels h w"]
    ) -> Float[Tensor, "batch channels h w"]:
        """The clean latents that an output of the denoiser at these latents stands for."""
        return self.x0_and_noise(output, t, latents)[0]

    def jump(
        self,
        output: Float[Tensor, "batch channels h w"],
        t: Tensor,
        latents: Float[Tensor, "batch channels h w"],
        to: Tensor,
    ) -> Float[Tensor, "batch channels h w"]:
        """One deterministic step of any length from timestep `t` down to `to`: DDIM's (Song et al. 2021, eq. 12 with
        sigma 0), which for flows is Euler's x_k - (k - j) v."""
        clean, noise = self.x0_and_noise(output, t, latents)
        return self.add_noise(clean, noise, to)

    def add_noise(
        self, clean: Float[Tensor, "batch channels h w"], noise: Float[Tensor, "batch channels h w"], t: Tensor
    ) -> Float[Tensor, "batch channels h w"]:
        """Clean latents at the noise level of a timestep, as the denoiser wants them."""
        signal, strength = self.levels(t)
        return signal * clean + strength * noise

    def target(
        self, clean: Float[Tensor, "batch channels h w"], noise: Float[Tensor, "batch channels h w"], t: Tensor
    ) -> Float[Tensor, "batch channels h w"]:
        """What the denoiser learns to say at a timestep."""
        signal, strength = self.levels(t)
        match self.prediction:
            case "epsilon":
                return noise
            case "v_prediction":
                return signal * noise - strength * clean
            case "sample":
                return clean
            case "velocity":
                return noise - clean


@dataclass(frozen=True)
class DiffusionNoise(NoiseSchedule):
    """The schedule of DDPM.

    Args:
        alphas_cumprod: of each training timestep, float64.
    """

    alphas_cumprod: np.ndarray

    def level(self, t: float) -> tuple[float, float]:
        """Between two timesteps as samplers in sigma interpolate; all noise where the signal ends at zero."""
        with np.errstate(divide="ignore"):
            sigmas = np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)
        sigma = float(np.interp(t, np.arange(len(sigmas)), sigmas))
        if not math.isfinite(sigma):
            return 0.0, 1.0
        return (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5


@dataclass(frozen=True)
class FlowNoise(NoiseSchedule):
    """Rectified flow: x_t = (1 - s) x_0 + s e with s = t / timesteps."""

    def level(self, t: float) -> tuple[float, float]:
        return 1 - t / self.timesteps, t / self.timesteps
