"""Bytes that a computation needs, counted on the real model."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from textcraftor.errors import is_out_of_memory
from textcraftor.models.model import Model


@dataclass(frozen=True)
class Cost:
    """Bytes that stay for the backward pass, and the most that exist at once through both passes."""

    kept: float
    peak: float


class _FusedShapes(torch.autograd.Function):
    """What a fused attention kernel keeps, without computing it: its inputs, its output and one number a query."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = query.new_zeros(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, *_ = ctx.saved_tensors
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Within it attention on the device `meta` costs what GPUs' fused kernels cost; torch would take the plain one."""
    real = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = lambda query, key, value, *_, **__: _FusedShapes.apply(
        query, key, value
    )
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = real


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, on any device, from when it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            self._meet(tensor, made_here=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._meet(tensor, made_here=True)
        return result

    def _meet(self, tensor: object, made_here: bool) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if made_here else 0
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known[key] = weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.now -= size


def cost_of(compute: Callable[[], Tensor]) -> Cost:
    """Run something with its backward pass, and count; what does not even fit alone costs infinitely much."""
    try:
        with LiveBytes() as live:
            result = compute()
            kept = live.now
            if result.requires_grad:
                result.float().sum().backward()
            del result
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return Cost(math.inf, math.inf)
    return Cost(kept, live.peak)


def make_gradients(model: Model) -> None:
    """Those of the weights, empty, so that they are there before activations are counted."""
    encoders = [encoder for name in model.readers for encoder in model.encoders(name).values()]
    for part in (model.denoiser, *encoders):
        for parameter in part.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None


@contextlib.contextmanager
def recomputing(model: Model, denoiser: bool = False, decoder: bool = False) -> Iterator[None]:
    model.checkpoint_blocks(denoiser, decoder)
    try:
        yield
    finally:
        model.checkpoint_blocks(denoiser=False, decoder=False)
