"""open_clip state dicts as transformers' `CLIPModel`, so that HPSv2 needs no package of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from textcraftor.assets import local_file
from textcraftor.errors import UsageError
from textcraftor.rewards.checkpoints import build, load_state, require_keys

LAYOUT = "an open_clip CLIP state dict"
# open_clip's names: (width, layers, heads, patch, MLP width) of the vision tower, (width, layers, heads) of the text
# tower, embedding. A state dict says neither the heads nor the activation.
ARCHITECTURES = {
    "ViT-B-32": ((768, 12, 12, 32, 3072), (512, 12, 8), 512),
    "ViT-L-14": ((1024, 24, 16, 14, 4096), (768, 12, 12), 768),
    "ViT-H-14": ((1280, 32, 16, 14, 5120), (1024, 24, 16), 1024),
    "ViT-bigG-14": ((1664, 48, 16, 14, 8192), (1280, 32, 20), 1280),
}

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


def to_transformers(state: Mapping[str, Tensor], config: CLIPConfig, source: str = "checkpoint") -> dict[str, Tensor]:
    """Rename and split an open_clip state dict.

    Raises:
        UsageError: naming the first key that is missing.
    """
    singles, joint = key_map(config), _joint_projections(config)
    require_keys(state, (*singles, *joint, *_PROJECTIONS), source, LAYOUT)
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


def architecture_config(architecture: str) -> CLIPConfig:
    """The CLIPConfig of an open_clip model name (`-quickgelu` as open_clip writes it), or of a JSON file."""
    if architecture.endswith(".json"):
        return CLIPConfig.from_dict(json.loads(local_file(architecture, "CLIP architecture").read_text()))
    name, _, suffix = architecture.partition("-quickgelu")
    if name not in ARCHITECTURES or suffix:
        known = ", ".join(ARCHITECTURES)
        raise UsageError(f"architecture={architecture} is unknown: one of {known}, or a CLIPConfig as .json")
    (width, layers, heads, patch, inner), (text_width, text_layers, text_heads), embedding = ARCHITECTURES[name]
    activation = "gelu" if name == architecture else "quick_gelu"
    vision = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch,
        "intermediate_size": inner,
        "hidden_act": activation,
        "projection_dim": embedding,
    }
    text = {
        "hidden_size": text_width,
        "num_hidden_layers": text_layers,
        "num_attention_heads": text_heads,
        "intermediate_size": 4 * text_width,
        "hidden_act": activation,
        "projection_dim": embedding,
        "eos_token_id": 49407,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=embedding)


def load_open_clip(checkpoint: str, architecture: str) -> CLIPModel:
    """Load an open_clip checkpoint, `.safetensors` or `.pt` (weights at the top or under `state_dict`).

    Args:
        checkpoint: a local file, `hf://owner/repo/file` or an address.
        architecture: open_clip's name of the model, or a JSON file with its `CLIPConfig`.
    """
    config = architecture_config(architecture)
    state = to_transformers(load_state(checkpoint, "open_clip checkpoint"), config, checkpoint)
    return build(lambda: CLIPModel(config), state, checkpoint, f"{LAYOUT} of {architecture}")
