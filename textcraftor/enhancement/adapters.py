"""Low-rank adapters of several pairs of pictures at once, each with its own, and their combination into one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from textcraftor.errors import UsageError

State = dict[str, Tensor]  # of adapters, under peft's names: <layer>.lora_A.weight and <layer>.lora_B.weight
AT_ONCE = 16  # adapters that are combined at a time


class PairAdapters(nn.Module):
    """LoRA (Hu et al. 2021) on a network's linear layers, as hooks: the rows of a batch, in equal blocks one after the
    other, each have adapters of their own.

    Args:
        network: what is adapted; it stays as it is.
        names: of the layers.
        rank: of every update.
        scale: of the updates, LoRA's alpha / rank.
        pairs: how many blocks of rows, and so adapters.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], rank: int, scale: float, pairs: int = 1) -> None:
        super().__init__()
        self.names, self.scale, self.pairs, self.enabled = tuple(names), scale, pairs, True
        self._layers: tuple[Any, ...] = tuple(map(network.get_submodule, names))  # no part of this: the network's own
        shapes, device = (
            [(layer.in_features, layer.out_features) for layer in self._layers],
            next(network.parameters()).device,
        )
        self.down = nn.ParameterList(torch.empty(pairs, rank, width, device=device) for width, _ in shapes)
        self.up = nn.ParameterList(torch.zeros(pairs, height, rank, device=device) for _, height in shapes)
        for weight in self.down:
            most = 1 / math.sqrt(weight.shape[2])  # as peft's
            weight.data[:] = torch.empty_like(weight[:1]).uniform_(-most, most)  # every pair begins alike

    @classmethod
    def new(cls, network: nn.Module, lora: LoraConfig, pairs: int = 1) -> PairAdapters:
        """Adapters that change nothing yet, of the layers that a configuration means."""
        names = [name for name, _ in network.named_modules() if name and check_target_module_exists(lora, name)]
        if not names:
            raise UsageError(f"tune: no layer matches target_modules={lora.target_modules}")
        if unfit := next((name for name in names if not hasattr(network.get_submodule(name), "in_features")), None):
            raise UsageError(f"tune: target_modules means {unfit}, and pairs of pictures adapt linear layers alone")
        return cls(network, names, lora.r, lora.lora_alpha / lora.r, pairs)

    @classmethod
    def of(cls, network: nn.Module, state: Mapping[str, Tensor]) -> PairAdapters:
        """Those that `state` returned."""
        adapters = cls(network, layers_of(state), rank_of(state), 1.0)
        for name, down, up in zip(adapters.names, adapters.down, adapters.up, strict=True):
            down.data.copy_(state[f"{name}.lora_A.weight"])
            up.data.copy_(state[f"{name}.lora_B.weight"])
        return adapters.requires_grad_(False)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Let the network compute with these adapters."""
        hooks = [layer.register_forward_hook(self._added(index)) for index, layer in enumerate(self._layers)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _added(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not self.enabled:
                return output
            down, up = self.down[index], self.up[index]
            rows = inputs[0].reshape(self.pairs, -1, down.shape[2]).to(down.dtype)
            change = self.scale * rows @ down.mT @ up.mT
            return output + change.reshape(output.shape).to(output.dtype)

        return add

    def state(self, pair: int = 0) -> State:
        """One pair's adapters, their scale in the second matrix."""
        state: State = {}
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            state[f"{name}.lora_A.weight"] = down[pair].detach().cpu().clone()
            state[f"{name}.lora_B.weight"] = self.scale * up[pair].detach().cpu()
        return state


def combined(states: Sequence[State], weights: Sequence[float], rank: int | None) -> State:
    """The weighted sum of several adapters' updates, by peft's `add_weighted_adapter`.

    Args:
        rank: of the nearest update of that rank, by singular value decomposition; None: the exact one, whose rank is
            the sum of all ranks.
    """
    if len(states) == 1 and weights[0] == 1 and rank in (None, rank_of(states[0])):
        return dict(states[0])
    if rank is not None and len(states) > AT_ONCE:
        parts = [slice(start, start + AT_ONCE) for start in range(0, len(states), AT_ONCE)]
        return combined([combined(states[part], weights[part], rank) for part in parts], [1.0] * len(parts), rank)
    configs = [
        LoraConfig(r=rank_of(state), lora_alpha=rank_of(state), target_modules=layers_of(state)) for state in states
    ]
    network = get_peft_model(skeleton(states[0]), configs[0], adapter_name="pair_0")  # type: ignore[arg-type]
    for number, (state, config) in enumerate(zip(states, configs, strict=True)):
        if number:
            network.add_adapter(f"pair_{number}", config)
        given = {f"base_model.model.{name}": tensor for name, tensor in state.items()}
        set_peft_model_state_dict(network, given, adapter_name=f"pair_{number}")
    names = [f"pair_{number}" for number in range(len(states))]
    how = (
        {"combination_type": "cat"}
        if rank is None
        else {"combination_type": "svd", "svd_rank": rank, "svd_full_matrices": False}
    )
    network.base_model.add_weighted_adapter(names, list(weights), "combined", **how)  # type: ignore[operator]
    state = get_peft_model_state_dict(network, adapter_name="combined")
    scale = network.peft_config["combined"].lora_alpha / network.peft_config["combined"].r  # type: ignore[attr-defined]
    return {
        name.removeprefix("base_model.model."): tensor.detach().clone() * (scale if ".lora_B." in name else 1.0)
        for name, tensor in state.items()
    }


def rank_of(state: Mapping[str, Tensor]) -> int:
    """The rank of adapters that have one rank."""
    return len(next(tensor for name, tensor in state.items() if ".lora_A." in name))


def layers_of(state: Mapping[str, Tensor]) -> list[str]:
    return [name.partition(".lora_A.")[0] for name in state if ".lora_A." in name]


def skeleton(state: Mapping[str, Tensor]) -> nn.Module:
    """A network of nothing but the linear layers that adapters are for, whose own weights are never written."""
    root = nn.Module()
    for name in layers_of(state):
        *path, last = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        width, height = state[f"{name}.lora_A.weight"].shape[1], state[f"{name}.lora_B.weight"].shape[0]
        place.add_module(last, nn.utils.skip_init(nn.Linear, width, height, bias=False))
    return root
