"""Where a frozen part's weights are while they do not work: the places, and what each saves."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn

Place = Literal["resident", "while_it_works", "on_disk", "layer_by_layer", "sharded"]
TOLD: dict[Place, str] = {
    "resident": "on the device",
    "while_it_works": "on the device only while it works",
    "on_disk": "read from disk whenever it works",
    "layer_by_layer": "on the device layer by layer",
    "sharded": "in shares on all processes",
}


@dataclass(frozen=True)
class Together:
    """How processes that share weights keep step.

    Args:
        count: of processes.
        ready: returns once all are there to exchange weights.
        most: the largest of the numbers that the processes give.
    """

    count: int = 1
    ready: Callable[[], Any] = lambda: None
    most: Callable[[int], int] = lambda number: number


@dataclass(frozen=True)
class Part:
    """A frozen part that may be elsewhere than on the device.

    Args:
        name: diffusers' name of it, `denoiser` or `scorers`.
        nbytes: of its weights.
        largest: bytes of the largest piece that works at a time: a block, a scorer.
        rest: bytes outside of all blocks.
        choices: beside `resident`, where it may be.
        alone: whether it works while nothing is kept for the backward pass, as text encoders do.
    """

    name: str
    nbytes: float
    choices: tuple[Place, ...]
    largest: float = 0.0
    rest: float = 0.0
    alone: bool = False

    @classmethod
    def of(cls, name: str, network: nn.Module, choices: tuple[Place, ...], alone: bool = False) -> Part:
        """A network's part, its sizes read off."""
        sizes, total = [bytes_of(block) for block in blocks_of(network)], bytes_of(network)
        if not all(one.is_floating_point() for one in network.parameters()):  # quantized: only whole
            choices = tuple(choice for choice in choices if choice == "while_it_works")
        return cls(name, total, choices, max(sizes, default=total), total - sum(sizes), alone)

    def saved(self, place: Place, processes: int) -> float:
        """Bytes that leave the device."""
        match place:
            case "resident":
                return 0.0
            case "layer_by_layer":
                return self.nbytes - self.rest
            case "sharded":
                return self.nbytes * (1 - 1 / processes)
        return self.nbytes

    def returning(self, place: Place) -> float:
        """Bytes of what has left that are on the device at once while it works."""
        match place:
            case "resident":
                return 0.0
            case "layer_by_layer":
                return self.largest
            case "sharded":
                return self.rest + 2 * self.largest  # one works, the next is on its way
        return self.nbytes if self.alone else self.largest


def bytes_of(network: nn.Module) -> float:
    """Of a network's weights."""
    return float(sum(one.nbytes for one in network.parameters()))


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The smallest modules that diffusers or transformers say are to stay whole, in their order."""
    names = set(getattr(network, "_no_split_modules", None) or ())

    def is_block(module: nn.Module) -> bool:
        return type(module).__name__.removeprefix("FSDP") in names

    every = [module for module in network.modules() if is_block(module)]
    return [one for one in every if not any(is_block(below) for below in one.modules() if below is not one)]


def temporary_file(owner: object) -> Path:
    """A new file in Python's folder for temporary ones (`TMPDIR`), which goes when its owner does."""
    handle, name = tempfile.mkstemp(prefix="textcraftor-", suffix=".pt")
    os.close(handle)
    file = Path(name)
    weakref.finalize(owner, file.unlink, missing_ok=True)
    return file


def put_layer_by_layer(network: nn.Module, device: torch.device, learning: Collection[nn.Parameter]) -> None:
    """Let the layers of a network's blocks be on the device only while they work (accelerate's hooks).

    Gradients flow where each block is computed again in the backward pass. Without a device beside the host's memory
    the weights come from disk, mapped.

    Args:
        learning: stays on the device.
    """
    kept = {id(one) for one in learning}
    layers = [layer for block in blocks_of(network) for layer in block.modules()]
    frozen = [
        layer
        for layer in layers
        if layer._parameters and not any(id(one) in kept for one in layer._parameters.values())
    ]
    weights = [{name: one.data.cpu() for name, one in layer.named_parameters(recurse=False)} for layer in frozen]
    if device.type == "cpu":
        weights = _mapped(network, weights)
    for layer, own in zip(frozen, weights, strict=True):
        add_hook_to_module(layer, AlignDevicesHook(device, offload=True, weights_map=own))


def _mapped(owner: object, weights: list[dict[str, Tensor]]) -> Any:
    file = temporary_file(owner)
    torch.save(weights, file)
    return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
