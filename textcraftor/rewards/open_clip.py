"""open_clip state dicts as transformers' `CLIPModel`, so that HPSv2 needs no package of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from textcraftor.errors import UsageError
from textcraftor.rewards.checkpoints import load_state

_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OUTER = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def key_map(config: CLIPConfig) -> dict[str, str]:
    """transformers' name of every open_clip key, joint `in_proj` tensors and transposed projections left out."""
    keys = dict(_OUTER)
    for ours, theirs, layers in (
        ("vision_model", "visual.transformer", config.vision_config.num_hidden_layers),
        ("text_model", "transformer", config.text_config.num_hidden_layers),
    ):
        for layer in range(layers):
            for old, new in _BLOCK.items():
                for part in ("weight", "bias"):
                    source = f"{theirs}.resblocks.{layer}.{old}.{part}"
                    keys[source] = f"{ours}.encoder.layers.{layer}.{new}.{part}"
    return keys


def _joint_projections(config: CLIPConfig) -> dict[str, list[str]]:
    """The q, k, v tensors that open_clip stacks in one `in_proj`."""
    return {
        f"{theirs}.resblocks.{layer}.attn.in_proj_{part}": [
            f"{ours}.encoder.layers.{layer}.self_attn.{side}_proj.{part}" for side in "qkv"
        ]
        for ours, theirs, layers in (
            ("vision_model", "visual.transformer", config.vision_config.num_hidden_layers),
            ("text_model", "transformer", config.text_config.num_hidden_layers),
        )
        for layer in range(layers)
        for part in ("weight", "bias")
    }


def to_transformers(state: Mapping[str, Tensor], config: CLIPConfig) -> dict[str, Tensor]:
    """Rename and split an open_clip state dict.

    Raises:
        UsageError: naming the first key that is missing.
    """
    singles, joint = key_map(config), _joint_projections(config)
    for key in (*singles, *joint, *_PROJECTIONS):
        if key not in state:
            raise UsageError(f"checkpoint: key {key!r} is missing; expected an open_clip CLIP state dict")
    converted = {new: state[old] for old, new in singles.items()}
    converted |= {new: state[old].T.contiguous() for old, new in _PROJECTIONS.items()}
    for old, parts in joint.items():
        converted |= dict(zip(parts, state[old].chunk(3), strict=True))
    return converted


def from_transformers(state: Mapping[str, Tensor], config: CLIPConfig) -> dict[str, Tensor]:
    """The inverse of `to_transformers`: open_clip's names for a CLIPModel's state dict."""
    converted = {old: state[new] for old, new in key_map(config).items()}
    converted |= {old: state[new].T.contiguous() for old, new in _PROJECTIONS.items()}
    converted |= {old: torch.cat([state[new] for new in parts]) for old, parts in _joint_projections(config).items()}
    return converted


def load_open_clip(checkpoint: str) -> CLIPModel:
    """Load an open_clip checkpoint, `.safetensors` or `.pt` (weights at the top or under `state_dict`).

    A JSON file of the same name beside it holds the `CLIPConfig`, which the state dict does not say (heads,
    activation).
    """
    state, sidecar = load_state(checkpoint, "open_clip checkpoint"), Path(checkpoint).with_suffix(".json")
    if not sidecar.exists():
        raise UsageError(f"{sidecar} does not exist: the CLIPConfig of {checkpoint} is needed beside it")
    config = CLIPConfig.from_dict(json.loads(sidecar.read_text()))
    model = CLIPModel(config)
    model.load_state_dict({key: value.float() for key, value in to_transformers(state, config).items()})
    return model
