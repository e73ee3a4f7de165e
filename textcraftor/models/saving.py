"""How what was tuned is written, so that diffusers, or else peft, loads it."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from textcraftor.errors import UsageError
from textcraftor.models.model import ORIGINAL, Model
from textcraftor.models.published_names import is_clip, published, weights_of

LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it
PEFT_FILE = "adapter_model.safetensors"  # as peft does, for what diffusers cannot load
ADAPTER = "again"  # names adapters that are read back


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


def save_lora(module: Any, component: str, lora: LoraConfig, pipeline: Any, folder: Path) -> None:
    """Write a network's adapters so that its pipelines' `load_lora_weights` takes all of them; peft's layout where it
    would take none.

    Args:
        component: diffusers' name of the network.
        pipeline: the class.

    Raises:
        RuntimeError: the stock loader does not read all of them back.
    """
    stored = get_peft_model_state_dict(module)
    taken = f"{component}_lora_layers"
    if taken not in inspect.signature(pipeline.save_lora_weights).parameters:
        module.save_pretrained(folder)
    else:
        state = {published(key, module): value.detach().cpu() for key, value in stored.items()}
        settings = {**lora.to_dict(), "base_model_name_or_path": None}  # peft notes where on this disk it lies
        metadata = {f"{component}_lora_adapter_metadata": settings}
        pipeline.save_lora_weights(folder, **{taken: stock_names(state, component)}, **metadata)
    check_same(folder, stock_adapters(module, component, pipeline, folder), stored)


def stock_names(state: Mapping[str, Tensor], component: str) -> dict[str, Tensor]:
    """Adapters under names that the stock loader knows: peft's, but diffusers' older ones for a text encoder without
    adapters on its attention, because the loader recognises peft's names by those layers."""
    on_attention = any(re.search(r"\.(q|k|v|out)_proj\.lora_", key) for key in state)
    if on_attention or not component.startswith("text_encoder"):
        return dict(state)
    older = {".lora_A.": ".lora_linear_layer.down.", ".lora_B.": ".lora_linear_layer.up."}
    return {re.sub(r"\.lora_[AB]\.", lambda match: older[match[0]], key): value for key, value in state.items()}


def stock_adapters(network: Any, component: str, pipeline: Any, folder: Path) -> dict[str, Tensor]:
    """What the stock loader puts into a network of this kind from a folder of adapters, under peft's names: the
    pipeline's, or for peft's layout the network's own `load_adapter`."""
    is_text = component.startswith("text_encoder")
    with torch.device("meta"):
        bare = type(network)(network.config) if is_text else type(network).from_config(network.config)
    bare.to(network.dtype).to_empty(device="cpu")  # its weights are never written, so they take no memory
    if (folder / PEFT_FILE).is_file():
        bare.load_adapter(str(folder), adapter_name=ADAPTER)
        return get_peft_model_state_dict(bare, adapter_name=ADAPTER)
    load = getattr(pipeline, f"load_lora_into_{'text_encoder' if is_text else component}")
    state, *about = pipeline.lora_state_dict(folder, return_lora_metadata=True, use_safetensors=True)
    given = {"text_encoder" if is_text else component: bare, "metadata": about[-1], "adapter_name": ADAPTER}
    given |= {"network_alphas": None, "prefix": component, "low_cpu_mem_usage": True}
    known = inspect.signature(load).parameters
    load(state, **{name: one for name, one in given.items() if name in known})
    return get_peft_model_state_dict(bare, adapter_name=ADAPTER)


def check_same(folder: Path, loaded: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse, loudly, adapters of which one was lost or changed on their way through a folder."""
    lost = sorted(loaded.keys() ^ wanted.keys())
    lost += [key for key in wanted if key in loaded and not _same(loaded[key], wanted[key])]
    if lost:
        raise RuntimeError(f"{folder}: {len(lost)} of {len(wanted)} tensors do not come back, {lost[0]} among them")


def _same(loaded: Tensor, wanted: Tensor) -> bool:
    return loaded.device.type != "meta" and torch.equal(loaded.detach().cpu(), wanted.detach().cpu().to(loaded.dtype))


def sharing(module: Any) -> Any:
    """A copy of a network that has the same weights, not others like them."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def plain_encoder(model: Model, name: str, part: str) -> PreTrainedModel:
    """A copy of a reader's text encoder in float32, frozen, its adapters merged into its weights.

    Args:
        name: of the reader.

    Raises:
        UsageError: the model has no such part.
    """
    originals = model.encoders(ORIGINAL)
    if part not in originals:
        raise UsageError(f"{part}: this model has no such text encoder; it has {', '.join(originals)}")
    module: Any = copy.deepcopy(originals[part]).float()
    module.load_state_dict(plain_state(model.encoders(name)[part]))
    return module.eval().requires_grad_(False)


def plain_state(encoder: Any) -> dict[str, Tensor]:
    """An encoder's weights with its adapters, where it has some, merged in."""
    if not getattr(encoder, "_hf_peft_config_loaded", False):
        return encoder.state_dict()
    whole = copy.deepcopy(encoder)
    for layer in whole.modules():
        if hasattr(layer, "merge") and hasattr(layer, "base_layer"):
            layer.merge()
    state = {}
    for key, value in whole.state_dict().items():
        if "lora_" not in key:
            state[key.replace(".base_layer.", ".")] = value
    return state
