"""Plain figures of pictures that over-optimised models are known to drift in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

NEAR_BLACK, NEAR_WHITE = 0.05, 0.95


@torch.no_grad()
def image_statistics(images: Float[Tensor, "batch 3 height width"]) -> dict[str, Float[Tensor, " batch"]]:
    """Figures of each picture in [0, 1], all in [0, 1] as well.

    Returns:
        saturation: mean of max - min over the channels (the chroma of HSV).
        contrast: standard deviation of the brightness over the pixels.
        edges: mean absolute difference of neighbouring pixels' brightness, across and down.
        near_black, near_white: share of pixels whose brightness is below .05 or above .95.
    """
    brightness = images.mean(1)
    across, down = brightness.diff(dim=2).abs(), brightness.diff(dim=1).abs()
    return {
        "saturation": (images.amax(1) - images.amin(1)).mean((1, 2)),
        "contrast": brightness.flatten(1).std(1, correction=0),
        "edges": (across.mean((1, 2)) + down.mean((1, 2))) / 2,
        "near_black": (brightness < NEAR_BLACK).float().mean((1, 2)),
        "near_white": (brightness > NEAR_WHITE).float().mean((1, 2)),
    }
