"""How what was tuned is written, so that diffusers, or else peft, loads it."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

PREFIX = "text_model."  # of a CLIP's weights as published
LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it
PEFT_FILE = "adapter_model.safetensors"  # as peft does, for what diffusers cannot load


def save_whole(module: Any, folder: Path) -> None:
    """Write a component's folder as diffusers loads it, a CLIP's with the published `text_model.` key names.

    transformers 5 leaves that prefix out, and whatever expects it then loads random weights with only a warning.
    """
    if not is_clip(module):
        module.save_pretrained(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    module.config.save_pretrained(folder)
    state = {published(key, module): one.detach().cpu().contiguous() for key, one in weights_of(module).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def is_clip(module: Any) -> bool:
    """Whether a network is a CLIP's text tower."""
    return getattr(module.config, "model_type", "") == "clip_text_model"


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The state of a network that files hold: counters that can be computed are left out."""
    return {key: value for key, value in module.state_dict().items() if not key.endswith("position_ids")}


def published(key: str, module: Any) -> str:
    """The name of a weight in published files."""
    is_plain = is_clip(module) and not key.startswith((PREFIX, "text_projection."))
    return PREFIX + key if is_plain else key


def save_lora(module: Any, component: str, lora: LoraConfig, pipeline: Any, folder: Path) -> None:
    """Write a network's adapters so that its pipelines' `load_lora_weights` takes them; peft's layout where it would
    not.

    Args:
        component: diffusers' name of the network.
        pipeline: the class.
    """
    taken = f"{component}_lora_layers"
    if taken not in inspect.signature(pipeline.save_lora_weights).parameters:
        module.save_pretrained(folder)
        return
    stored = get_peft_model_state_dict(module).items()
    state = {published(key, module): value.detach().cpu() for key, value in stored}
    pipeline.save_lora_weights(folder, **{taken: state, f"{component}_lora_adapter_metadata": lora.to_dict()})


def sharing(module: Any) -> Any:
    """A copy of a network that has the same weights, not others like them."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def plain_state(encoder: Any) -> dict[str, Tensor]:
    """An encoder's weights with its adapters, where it has some, merged in."""
    if not getattr(encoder, "_hf_peft_config_loaded", False):
        return encoder.state_dict()
    whole = copy.deepcopy(encoder)
    for layer in whole.modules():
        if hasattr(layer, "merge") and hasattr(layer, "base_layer"):
            layer.merge()
    found = {}
    for key, value in whole.state_dict().items():
        if "lora_" not in key:
            found[key.replace(".base_layer.", ".")] = value
    return found
