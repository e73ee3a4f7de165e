"""Writes pipelines as single files, under the names of the original code: the reverse of what diffusers reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE = {"conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "mid_block.attentions.0": "mid.attn_1"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def replaced(key: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        key = re.sub(rf"(^|\.){re.escape(ours)}\.", rf"\g<1>{theirs}.", key)
    return key


def unet_key(key: str, blocks: int, layers: int) -> str:
    """A UNet's name in the original code, whose blocks are numbered through."""
    per = layers + 1
    if match := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", key):
        block, kind, layer, rest = match.groups()
        head = f"input_blocks.{per * int(block) + int(layer) + 1}.{int(kind == 'attentions')}."
        return head + (replaced(rest, RESNET) if kind == "resnets" else rest)
    if match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", key):
        return f"input_blocks.{per * (int(match[1]) + 1)}.0.op.{match[2]}"
    if match := re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", key):
        block, kind, layer, rest = match.groups()
        head = f"output_blocks.{per * int(block) + int(layer)}.{int(kind == 'attentions')}."
        return head + (replaced(rest, RESNET) if kind == "resnets" else rest)
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
        kind, layer, rest = match.groups()
        number = 2 * int(layer) if kind == "resnets" else 1
        return f"middle_block.{number}." + (replaced(rest, RESNET) if kind == "resnets" else rest)
    return replaced(key, UNET)


def unet_tensors(unet: Any) -> dict[str, Tensor]:
    state, config = unet.state_dict(), unet.config
    attending = {int(match[1]) for key in state if (match := re.match(r"up_blocks\.(\d+)\.attentions", key))}
    renamed = {}
    for key, value in state.items():
        if match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.(.*)", key):  # behind the attention, where there is one
            place = (config.layers_per_block + 1) * (int(match[1]) + 1) - 1
            name = f"output_blocks.{place}.{1 + (int(match[1]) in attending)}.{match[2]}"
        else:
            name = unet_key(key, len(config.block_out_channels), config.layers_per_block)
        renamed[f"model.diffusion_model.{name}"] = value
    return renamed


def vae_tensors(vae: Any) -> dict[str, Tensor]:
    renamed, last = {}, len(vae.config.block_out_channels) - 1
    for key, value in vae.state_dict().items():
        name = replaced(key, VAE)
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid.attn_1" in name:
            name = replaced(name, VAE_ATTENTION)
            value = value[:, :, None, None] if value.dim() == 2 else value
        renamed[f"first_stage_model.{name}"] = value
    return renamed


def clip_tensors(encoder: Any, prefix: str) -> dict[str, Tensor]:
    """OpenAI's CLIP, as transformers names it."""
    state = encoder.state_dict().items()
    return {f"{prefix}transformer.text_model.{key.removeprefix('text_model.')}": value for key, value in state}


def open_clip_tensors(encoder: Any, prefix: str) -> dict[str, Tensor]:
    """OpenCLIP's own names; its query, key and value are one tensor."""
    state = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    renamed = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    if "text_projection.weight" in state:
        renamed["text_projection"] = state["text_projection.weight"].T
    for key, value in state.items():
        if match := re.match(r"encoder\.layers\.(\d+)\.(.*)", key):
            number, rest = match.groups()
            if not re.match(r"self_attn\.[qkv]_proj", rest):
                renamed[f"transformer.resblocks.{number}.{replaced(rest, OPEN_CLIP)}"] = value
            elif rest.startswith("self_attn.q_proj"):
                kind = rest.rpartition(".")[2]
                parts = [state[f"encoder.layers.{number}.self_attn.{one}_proj.{kind}"] for one in "qkv"]
                renamed[f"transformer.resblocks.{number}.attn.in_proj_{kind}"] = torch.cat(parts)
    return {prefix + key: value for key, value in renamed.items()}


def write_single_file(pipeline: DiffusionPipeline, file: Path, *more: str) -> Path:
    """A pipeline as one file; `more` are names of empty tensors that say something."""
    tensors = unet_tensors(pipeline.unet) | vae_tensors(pipeline.vae)
    if hasattr(pipeline, "text_encoder_2"):
        tensors |= clip_tensors(pipeline.text_encoder, "conditioner.embedders.0.")
        tensors |= open_clip_tensors(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    elif pipeline.text_encoder.config.hidden_act == "quick_gelu":
        tensors |= clip_tensors(pipeline.text_encoder, "cond_stage_model.")
    else:
        tensors |= open_clip_tensors(pipeline.text_encoder, "cond_stage_model.model.")
    tensors |= {name: torch.zeros(0) for name in more}
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, file)
    return file
