"""The published scorers' preprocessing, differentiable and deterministic on every device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from textcraftor.files.pictures import to_rgb

MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}  # by `resample` of published files
PILLOW_PRECISION = 2**22  # Pillow resamples 8-bit pictures with coefficients rounded to this fraction


@cache
def resize_matrix(
    source: int, target: int, mode: str = "bicubic", antialias: bool = True
) -> Float[Tensor, "target source"]:
    """Resampling of one axis as a matrix, float64.

    Bicubic `interpolate` has no deterministic backward on CUDA; a product with its own response to the unit
    vectors has.
    """
    unit = torch.eye(source, dtype=torch.float64)[None, None]
    return nn.functional.interpolate(unit, size=(target, source), mode=mode, antialias=antialias)[0, 0]


def resize(
    images: Float[Tensor, "batch channels height width"],
    height: int,
    width: int,
    mode: str = "bicubic",
    pillow: bool = True,
    antialias: bool = True,
) -> Float[Tensor, "batch channels {height} {width}"]:
    """Resize of pictures in [0, 1], first along rows, then along columns.

    Args:
        pillow: as Pillow resizes 8-bit pictures, which clips and rounds after each pass. Clipping is differentiable,
            rounding is not: pictures that carry a gradient are left unrounded, which moves a score by less than a
            hundredth of its standard deviation. False for scorers that were published with a resize of float tensors.
        antialias: as Pillow does; False, and `pillow` too, for scorers that were published with OpenCV's.
    """
    if pillow and not images.requires_grad:
        return _resize_as_pillow(images, height, width, mode)
    for axis, size in ((-1, width), (-2, height)):
        if images.shape[axis] != size:
            matrix = resize_matrix(images.shape[axis], size, mode, antialias).to(images)
            images = images @ matrix.T if axis == -1 else matrix @ images
            images = images.clamp(0, 1) if pillow else images
    return images


def _resize_as_pillow(
    images: Float[Tensor, "batch channels height width"], height: int, width: int, mode: str
) -> Float[Tensor, "batch channels {height} {width}"]:
    """What Pillow makes of these pictures, in its fixed-point arithmetic, still as floats."""
    levels = images.double() * 255
    whole = levels.round()
    levels = torch.where((levels - whole).abs() < 1e-3, whole, levels)  # of an 8-bit picture, in spite of float32
    for axis, size in ((-1, width), (-2, height)):
        if images.shape[axis] != size:
            matrix = resize_matrix(images.shape[axis], size, mode).to(images.device)
            matrix = (matrix * PILLOW_PRECISION).round() / PILLOW_PRECISION
            levels = levels @ matrix.T if axis == -1 else matrix @ levels
            levels = (levels + 0.5).floor().clamp(0, 255)
    return (levels / 255).to(images.dtype)


def normalize(
    images: Float[Tensor, "batch 3 height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "batch 3 height width"]:
    """(images - mean) / std, channel by channel."""
    center, spread = (torch.tensor(values).to(images).view(3, 1, 1) for values in (mean, std))
    return (images - center) / spread


def from_pil(picture: Image.Image) -> Float[Tensor, "3 height width"]:
    """A picture as floats in [0, 1], see `to_rgb`."""
    return torch.from_numpy(np.array(to_rgb(picture))).permute(2, 0, 1).float() / 255


def clip_pixels(
    images: Float[Tensor, "batch 3 height width"], size: int, floor_crop: bool = False
) -> Float[Tensor, "batch 3 {size} {size}"]:
    """CLIP's preprocessing: shortest side to `size`, centre crop, mean and standard deviation.

    Args:
        images: in [0, 1].
        size: side of the result, in pixels.
        floor_crop: of an odd margin the smaller half goes first, as in transformers; else half of it rounded to
            even, as in torchvision.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    images = resize(images, size * height // short, size * width // short)
    margins = (side - size for side in images.shape[-2:])
    top, left = (margin // 2 if floor_crop else round(margin / 2) for margin in margins)
    return normalize(images[..., top : top + size, left : left + size], OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)


def squeezed_pixels(images: Float[Tensor, "batch 3 height width"], size: int) -> Float[Tensor, "batch 3 {size} {size}"]:
    """SigLIP's preprocessing: both sides to `size`, whatever the shape, mean and standard deviation 0.5."""
    return normalize(resize(images, size, size), IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)


def padded_pixels(images: Float[Tensor, "batch 3 height width"], size: int) -> Float[Tensor, "batch 3 {size} {size}"]:
    """HPSv2's preprocessing: longest side to `size` as a float tensor, black borders, mean and standard deviation.

    Its package calls the training flavour of open_clip's transform, so pictures that are not square are not cropped.
    """
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    images = resize(images, max(1, round(height * scale)), max(1, round(width * scale)), pillow=False)
    down, right = (size - side for side in images.shape[-2:])
    images = nn.functional.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
    return normalize(images, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
