"""Files of weights that are no text-to-image model: what each is, by its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

LORA, FLUX_2 = "a LoRA", "a single file of FLUX.2, which is read from a folder alone"
NEVER_WHOLE = (LORA, FLUX_2)  # whatever else such a file holds
# What a file is that has a tensor of such a name; the first that fits.
KINDS = {
    r"(^|[._])(lora|hada|lokr|oft|dora)_|\.lora\.": LORA,
    r"^(control_model|controlnet_\w+|input_hint_block)\.": "a ControlNet",
    r"^(emb_params|string_to_param|clip_[lg])$": "a textual inversion, the embedding of one word",
    r"(^|\.)double_stream_modulation_img\.": FLUX_2,
    r"^conditioner\.embedders\.0\.model\.": "SDXL's refiner, which lacks SDXL's first text encoder",
    r"^model\.diffusion_model\.": "a denoiser without the text encoders of a model that is known here",
    r"^(first_stage_model\.|vae\.|decoder\.(conv_in|mid|up|mid_block|up_blocks)\.)": "a VAE",
    r"^(down_blocks|transformer_blocks|single_transformer_blocks)\.": "a denoiser in diffusers' layout",
    r"(^|\.)(text_model|transformer\.resblocks)\.|^encoder\.block\.": "a text encoder",
}
# How many channels the first layer of a text-to-image model reads; others read a picture or a mask as well.
CHANNELS = {
    "model.diffusion_model.input_blocks.0.0.weight": 4,
    "img_in.weight": 64,
    "model.diffusion_model.img_in.weight": 64,
}
PRECISIONS = ("F64", "F32", "F16", "BF16", "I64", "I32")  # the whole numbers are positions


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its precision, as safetensors writes it, and its shape."""

    precision: str
    shape: tuple[int, ...]


def kind_of_other(names: Iterable[str]) -> str | None:
    """What a file with tensors of these names is, where it is no model."""
    return next((what for pattern, what in KINDS.items() if any(re.search(pattern, name) for name in names)), None)


def unsuited(tensors: Mapping[str, Stored]) -> str | None:
    """Why a whole checkpoint cannot be learned from, if it cannot."""
    for name, tensor in tensors.items():
        if tensor.precision not in PRECISIONS and 0 not in tensor.shape:
            return (
                f"holds weights in {tensor.precision} ({name}), too coarse to train: take the file in F16, BF16 or F32"
            )
    for name, usual in CHANNELS.items():
        if name in tensors and len(tensors[name].shape) > 1 and tensors[name].shape[1] != usual:
            return (
                f"reads {tensors[name].shape[1]} channels where text-to-image models read {usual}, as models for "
                "inpainting and editing do: take the text-to-image model"
            )
    return None
