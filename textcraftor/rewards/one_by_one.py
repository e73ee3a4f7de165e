"""Scorers that work one after another, so that one of them at a time needs memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def score_at_once(
    score: Callable[[Tensor], Tensor], images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, " batch"]:
    """A scorer's scores, whose gradient is computed with them: each depends on its own picture alone, so that what the
    backward pass needs of the scorer is one tensor of the pictures' shape."""
    return _AtOnce.apply(score, images)


class _AtOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        leaf = images.detach().requires_grad_(images.requires_grad)
        with torch.enable_grad():
            scores = score(leaf)
            total = scores.float().sum()
        if scores.requires_grad:
            ctx.save_for_backward(torch.autograd.grad(total, leaf)[0])
        else:
            ctx.mark_non_differentiable(scores)
        return scores.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (each,) = ctx.saved_tensors
        return None, gradient.to(each)[:, None, None, None] * each


@contextlib.contextmanager
def visiting(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Within, a network is on the device; then it is in the host's memory."""
    network.to(device)
    try:
        yield
    finally:
        network.to("cpu")
