"""The names that tensors have in the original code of each family, the reverse of what diffusers reads: for single-file
checkpoints, which A1111, Forge and ComfyUI take."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.loaders import single_file_utils as diffusers_reads
from torch import Tensor

from textcraftor.models.published_names import PREFIX, weights_of

State = Mapping[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_NAMES = {"conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "mid_block.attentions.0": "mid.attn_1"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_NAMES = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
EMBEDDERS = {  # of SD3 and FLUX alike, without the names of what is embedded
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
SD3_NAMES = EMBEDDERS | {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
}
SD3_BLOCK = {
    "attn.to_qkv": "x_block.attn.qkv",
    "attn.add_qkv_proj": "context_block.attn.qkv",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_qkv": "x_block.attn2.qkv",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
FLUX_NAMES = EMBEDDERS | {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
}
FLUX_BLOCK = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_qkv": "img_attn.qkv",
    "attn.add_qkv_proj": "txt_attn.qkv",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
FLUX_SINGLE_BLOCK = {
    "norm.linear": "modulation.lin",
    "attn.to_qkv_mlp": "linear1",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out": "linear2",
}


@dataclass(frozen=True)
class Naming:
    """How one network's tensors are named in a single file.

    Args:
        write: a network's tensors under diffusers' names and its configuration to those of the original code.
        read: the reverse, diffusers' own: a file's tensors, the network and the prefix to diffusers' names.
        prefix: what begins the names in the file.
    """

    write: Callable[[State, Any], dict[str, Tensor]]
    read: Callable[[dict[str, Tensor], Any, str], dict[str, Tensor]]
    prefix: str = ""

    def under(self, prefix: str) -> Naming:
        return Naming(self.write, self.read, prefix)

    def tensors(self, network: Any) -> dict[str, Tensor]:
        """A network's tensors as the file names them."""
        written = self.write(own_names(weights_of(network)), network.config)
        return {self.prefix + key: value for key, value in written.items()}

    def read_back(self, tensors: State, network: Any) -> dict[str, Tensor]:
        """What diffusers makes of the file's tensors of this network, under the network's own names."""
        own = {key: value for key, value in tensors.items() if key.startswith(self.prefix)}
        return own_names(self.read(own, network, self.prefix))


def own_names(state: State) -> dict[str, Tensor]:
    """A state without the prefix of CLIP's published names, which some versions of transformers leave out."""
    return {key.removeprefix(PREFIX): value for key, value in state.items()}


def replaced(key: str, names: Mapping[str, str]) -> str:
    """A name with whole parts of it replaced."""
    for ours, theirs in names.items():
        key = re.sub(rf"(^|\.){re.escape(ours)}(?=\.|$)", rf"\g<1>{theirs}", key)
    return key


def unet_key(key: str, layers: int) -> str:
    """A UNet's name in the original code, whose blocks are numbered through."""
    per = layers + 1
    if match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", key):
        return f"input_blocks.{per * (int(match[1]) + 1)}.0.op.{match[2]}"
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", key):
        way, block, kind, layer, rest = match.groups()
        place = per * int(block) + int(layer)
        number = f"input_blocks.{place + 1}" if way == "down" else f"output_blocks.{place}"
        return f"{number}.{int(kind == 'attentions')}." + (replaced(rest, RESNET) if kind == "resnets" else rest)
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
        kind, layer, rest = match.groups()
        place = 2 * int(layer) if kind == "resnets" else 1
        return f"middle_block.{place}." + (replaced(rest, RESNET) if kind == "resnets" else rest)
    return replaced(key, UNET_NAMES)


def unet(state: State, config: Any) -> dict[str, Tensor]:
    """The UNet of Stable Diffusion and SDXL (CompVis' and Stability's code)."""
    attending = {int(match[1]) for key in state if (match := re.match(r"up_blocks\.(\d+)\.attentions", key))}
    renamed = {}
    for key, value in state.items():
        if match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.(.*)", key):  # behind the attention, where there is one
            place = (config.layers_per_block + 1) * (int(match[1]) + 1) - 1
            renamed[f"output_blocks.{place}.{1 + (int(match[1]) in attending)}.{match[2]}"] = value
        else:
            renamed[unet_key(key, config.layers_per_block)] = value
    return renamed


def vae(state: State, config: Any) -> dict[str, Tensor]:
    """The VAE of every family here: attention is a convolution of one pixel, and the decoder counts from its end."""
    renamed, last = {}, len(config.block_out_channels) - 1
    for key, value in state.items():
        name = replaced(key, VAE_NAMES)
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid.attn_1" in name:
            name = replaced(name, VAE_ATTENTION)
            value = value[:, :, None, None] if value.dim() == 2 else value
        renamed[name] = value
    return renamed


def clip(state: State, config: Any) -> dict[str, Tensor]:
    """OpenAI's CLIP, as transformers published it."""
    return {key if key.startswith("text_projection") else PREFIX + key: value for key, value in state.items()}


def open_clip(state: State, config: Any) -> dict[str, Tensor]:
    """OpenCLIP's own names; its query, key and value are one tensor."""
    renamed = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    if "text_projection.weight" in state:
        renamed["text_projection"] = state["text_projection.weight"].T
    layers = {key: value for key, value in state.items() if key.startswith("encoder.layers.")}
    for key, value in joined(layers, [f"self_attn.{one}_proj" for one in "qkv"], "attn.in_proj").items():
        name = key.replace("encoder.layers.", "transformer.resblocks.").replace("in_proj.", "in_proj_")
        renamed[replaced(name, OPEN_CLIP_NAMES)] = value
    return renamed


def as_it_is(state: State, config: Any) -> dict[str, Tensor]:
    """A T5, whose names are transformers' everywhere."""
    return dict(state)


def sd3(state: State, config: Any) -> dict[str, Tensor]:
    """Stability's MMDiT: one tensor for query, key and value; shift before scale where no gate follows."""
    fused = joined(
        joined(state, ["to_q", "to_k", "to_v"], "to_qkv"), [f"add_{one}_proj" for one in "qkv"], "add_qkv_proj"
    )
    last, renamed = f"transformer_blocks.{config.num_layers - 1}.norm1_context.", dict[str, Tensor]()
    for key, value in fused.items():
        value = swapped(value) if key.startswith((last, "norm_out.")) else value
        head, block, rest = re.fullmatch(r"(transformer_blocks\.(\d+)\.)?(.*)", key).groups()  # type: ignore[union-attr]
        name = f"joint_blocks.{block}.{replaced(rest, SD3_BLOCK)}" if head else replaced(rest, SD3_NAMES)
        renamed["pos_embed" if key == "pos_embed.pos_embed" else name] = value
    return renamed


def flux(state: State, config: Any) -> dict[str, Tensor]:
    """Black Forest Labs' FLUX.1: query, key and value are one tensor, in single blocks with the MLP's."""
    double = {key: value for key, value in state.items() if not key.startswith("single_")}
    single = {key: value for key, value in state.items() if key.startswith("single_")}
    fused = joined(
        joined(double, ["to_q", "to_k", "to_v"], "to_qkv"), [f"add_{one}_proj" for one in "qkv"], "add_qkv_proj"
    )
    fused |= joined(single, ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"], "attn.to_qkv_mlp")
    renamed = {}
    for key, value in fused.items():
        head, block, rest = re.fullmatch(r"(?:(\w*)transformer_blocks\.(\d+)\.)?(.*)", key).groups()  # type: ignore[union-attr]
        if head is None:
            renamed[replaced(rest, FLUX_NAMES)] = swapped(value) if rest.startswith("norm_out.") else value
        elif head:
            renamed[f"single_blocks.{block}.{replaced(rest, FLUX_SINGLE_BLOCK)}"] = value
        else:
            renamed[f"double_blocks.{block}.{replaced(rest, FLUX_BLOCK)}"] = value
    return renamed


def joined(state: State, parts: list[str], whole: str) -> dict[str, Tensor]:
    """A state in which the tensors of layers that lie beside each other are one, rows after rows.

    Args:
        parts: ends of the layers' names, in the order of the rows.
        whole: the end of the joined layer's name, in the place of the first part's.
    """
    result = dict(state)
    for key in state:
        if match := re.fullmatch(rf"(.*?)(^|\b){re.escape(parts[0])}(\.\w+)", key):
            names = [f"{match[1]}{part}{match[3]}" for part in parts]
            result[f"{match[1]}{whole}{match[3]}"] = torch.cat([result.pop(name) for name in names])
    return result


def swapped(weight: Tensor) -> Tensor:
    """The second half of the rows before the first: diffusers has the scale first, the original code the shift."""
    scale, shift = weight.chunk(2)
    return torch.cat([shift, scale])


def stripped(tensors: dict[str, Tensor], network: Any, prefix: str) -> dict[str, Tensor]:
    """What is read under the names that it has behind the prefix, as diffusers does for CLIP and T5."""
    return {key.removeprefix(prefix): value for key, value in tensors.items()}


UNET = Naming(unet, lambda tensors, network, _: diffusers_reads.convert_ldm_unet_checkpoint(tensors, network.config))
VAE = Naming(vae, lambda tensors, network, _: diffusers_reads.convert_ldm_vae_checkpoint(tensors, network.config))
CLIP, T5 = Naming(clip, stripped), Naming(as_it_is, stripped)
OPEN_CLIP = Naming(
    open_clip, lambda tensors, network, prefix: diffusers_reads.convert_open_clip_checkpoint(network, tensors, prefix)
)
SD3 = Naming(sd3, lambda tensors, *_: diffusers_reads.convert_sd3_transformer_checkpoint_to_diffusers(tensors))
FLUX = Naming(flux, lambda tensors, *_: diffusers_reads.convert_flux_transformer_checkpoint_to_diffusers(tensors))
