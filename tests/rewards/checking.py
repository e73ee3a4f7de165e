"""What the tests of every further scorer compare with: pictures as people have them, finite differences."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from parity import tiny
from PIL import Image
from torch import Tensor

from textcraftor.rewards.base import Reward
from textcraftor.rewards.preprocessing import from_pil


def pictures() -> list[Image.Image]:
    """Three shapes, hard edges among them."""
    return [Image.fromarray(picture) for picture in tiny.pictures()]


def images() -> list[Tensor]:
    """The same as batches of one, as a reward takes them."""
    return [from_pil(picture)[None] for picture in pictures()]


def check_gradient(
    scorer: Reward, image: Tensor, prompts: Sequence[str], step: float = 1e-4, rtol: float = 1e-5
) -> None:
    """The gradient in the pixels, in double precision, equals finite differences along it and along a chance
    direction."""
    scorer = copy.deepcopy(scorer).double()
    inside = (0.1 + 0.8 * image).double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(scorer(inside, prompts).sum(), inside)
    assert gradient.abs().max() > 0
    chance = torch.randn(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for direction in (gradient / gradient.norm(), chance / chance.norm()):
        moved = [(inside + sign * step * direction).detach().requires_grad_() for sign in (1, -1)]
        ahead, behind = (scorer(each, prompts).sum().detach() for each in moved)
        torch.testing.assert_close(
            (gradient * direction).sum(), (ahead - behind) / (2 * step), rtol=rtol, atol=rtol * float(gradient.norm())
        )


def largest(ours: Tensor, theirs: Tensor | np.ndarray) -> float:
    """The largest difference of two arrays of one shape."""
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    return float((ours.detach() - theirs).abs().max())
