"""The published scorers' preprocessing, differentiable and deterministic on every device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


@cache
def resize_matrix(source: int, target: int) -> Float[Tensor, "target source"]:
    """Antialiased bicubic resampling of one axis as a matrix.

    Bicubic `interpolate` has no deterministic backward on CUDA; a product with its own response to the unit
    vectors has.
    """
    unit = torch.eye(source, dtype=torch.float64)[None, None]
    return nn.functional.interpolate(unit, size=(target, source), mode="bicubic", antialias=True)[0, 0].float()


def resize(images: Float[Tensor, "batch 3 height width"], height: int, width: int) -> Tensor:
    """Antialiased bicubic resize, shape (batch, 3, height, width)."""
    if images.shape[-2:] == (height, width):
        return images
    rows = resize_matrix(images.shape[-2], height).to(images)
    columns = resize_matrix(images.shape[-1], width).to(images)
    return rows @ images @ columns.T


def clip_pixels(
    images: Float[Tensor, "batch 3 height width"],
    size: int,
    mean: Sequence[float] = OPENAI_CLIP_MEAN,
    std: Sequence[float] = OPENAI_CLIP_STD,
) -> Float[Tensor, "batch 3 size size"]:
    """CLIP's preprocessing: shortest side to `size`, centre crop, mean and standard deviation.

    Args:
        images: in [0, 1].
    """
    height, width = images.shape[-2:]
    scale = size / min(height, width)
    images = resize(images, max(size, int(height * scale)), max(size, int(width * scale)))
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    images = images[..., top : top + size, left : left + size]
    center, spread = (torch.tensor(values).to(images).view(3, 1, 1) for values in (mean, std))
    return (images - center) / spread
