"""Frozen networks of which each process of a launch holds a share (FSDP 2: torch's `fully_shard`).

Before a block works, the processes exchange its weights, so all of them must run the same blocks in the same order.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._pytree import tree_leaves

from textcraftor.errors import UsageError
from textcraftor.models.placing import Together, blocks_of


def shard(network: nn.Module, device: torch.device, learning: Collection[nn.Parameter], together: Together) -> None:
    """Leave each process its share of a network's weights; what learns stays whole in every process.

    Raises:
        UsageError: this torch cannot recover from an interrupted pass.
    """
    from torch.distributed.device_mesh import init_device_mesh  # half a second that others need not wait for
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not hasattr(FSDPModule, "reset_iter_state"):
        raise UsageError(f"memory.places: to share weights needs torch 2.13 or newer; this is {torch.__version__}")
    mesh = init_device_mesh(device.type, (together.count,))

    def before(*_: Any) -> None:
        together.ready()

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = [one for one in tree_leaves(_plain(output)) if isinstance(one, Tensor) and one.requires_grad]
        if tensors:
            register_multi_grad_hook(tensors, before, mode="any")

    for module in (*blocks_of(network), network):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=set(learning))
        # Ahead of torch's own hooks, which exchange the weights: forward, and when the first gradient comes back.
        module.register_forward_pre_hook(before, prepend=True)
        module.register_forward_hook(after, prepend=True)


def _plain(output: Any) -> Any:
    """What diffusers' and transformers' outputs hold."""
    return dict(output) if isinstance(output, dict) else output


def begin_anew(network: nn.Module) -> None:
    """Reset after a pass that every process left at the same exchange: all weights are in shares again."""
    if type(network).__name__.startswith("FSDP"):  # as `fully_shard` names it
        network.reset_iter_state()  # type: ignore[operator]
