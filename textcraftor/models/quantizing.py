"""Frozen linear layers in eight or four bits, by bitsandbytes where it is installed (Dettmers et al. 2023, QLoRA)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from textcraftor.errors import UsageError
from textcraftor.models.compiling import probe
from textcraftor.models.model import Model
from textcraftor.models.placing import blocks_of


def check_quantize(kinds: Mapping[str, str]) -> None:
    """Refuse to quantize where nothing can.

    Raises:
        UsageError: bitsandbytes is missing.
    """
    if kinds and importlib.util.find_spec("bitsandbytes") is None:
        part, kind = next(iter(kinds.items()))
        raise UsageError(f"quantize.{part}={kind} needs bitsandbytes: pip install bitsandbytes, or leave it out")


def quantize(model: Model, kinds: Mapping[str, str], height: int, width: int) -> str:
    """Store the frozen linear layers in the blocks of some parts in fewer bits; adapters on them stay as they are.

    Args:
        kinds: by part, `nf4` or `int8`.
        height, width: of the pictures, in pixels.

    Returns:
        How near the denoiser's gradient stays to the exact one, in a line.

    Raises:
        UsageError: a part that the model does not have, or that learns whole.
    """
    exact = probe(model, height, width)
    for part, kind in kinds.items():
        if part not in (*model.text_encoders, "denoiser"):
            there = ", ".join([*model.text_encoders, "denoiser"])
            raise UsageError(f"quantize.{part}={kind}: this model has no such part; it has {there}")
        known = dict[int, nn.Module]()
        networks = [model.denoiser] if part == "denoiser" else [model.encoders(name)[part] for name in model.readers]
        if not sum(_replace(network, kind, model.compute_dtype, known) for network in networks):
            raise UsageError(
                f"quantize.{part}={kind}: all of it learns: quantize a part that does not, or tune by LoRA"
            )
    rounded = probe(model, height, width)
    cosines = {
        name: float(torch.cosine_similarity(rounded[name].flatten(), exact[name].flatten(), 0)) for name in exact
    }
    stored = ", ".join(f"{part} in {kind}" for part, kind in kinds.items())
    return f"{stored}, cosine to the exact {', '.join(f'{name} {value:.4f}' for name, value in cosines.items())}"


def _replace(network: nn.Module, kind: str, dtype: torch.dtype, known: dict[int, nn.Module]) -> int:
    """Put quantized layers in the place of frozen ones; those that share weights share them afterwards too."""
    places = [
        (parent, name, layer)
        for block in blocks_of(network)
        for parent in block.modules()
        for name, layer in parent.named_children()
        if type(layer) is nn.Linear and not layer.weight.requires_grad and "lora_" not in name
    ]
    adapters = {id(one) for parent, name, one in places if type(parent) is nn.ModuleDict}  # peft's, not yet learning
    replaced = [place for place in places if id(place[2]) not in adapters]
    for parent, name, layer in replaced:
        setattr(parent, name, known.setdefault(id(layer.weight), _quantized(layer, kind, dtype)))
    return len(replaced)


def _quantized(layer: nn.Linear, kind: str, dtype: torch.dtype) -> nn.Module:
    import bitsandbytes as bnb

    size, bias, weight = (layer.in_features, layer.out_features), layer.bias is not None, layer.weight
    new: Any
    if kind == "nf4":
        new = bnb.nn.Linear4bit(*size, bias, compute_dtype=dtype, quant_type="nf4")
        new.weight = bnb.nn.Params4bit(weight.data, requires_grad=False, quant_type="nf4", module=new)
    else:
        new = bnb.nn.Linear8bitLt(*size, bias, has_fp16_weights=False)
        new.weight = bnb.nn.Int8Params(weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
    new.bias = layer.bias
    return new.to(weight.device).requires_grad_(False)
