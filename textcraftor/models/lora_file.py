"""What a LoRA's file says beside its matrices: all of it is applied, or refused by the name of tensor or setting."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from textcraftor.errors import UsageError
from textcraftor.files.reading import shaped

# The two matrices of a layer, under the names of kohya, of diffusers or of peft, and its alpha.
KNOWN = re.compile(r"(lora(\d?\.|_linear_layer\.|_)(down|up)\.weight|\.lora_[AB]\.weight|\.alpha)$")
KINDS = {
    "dora_scale|lora_magnitude_vector": "the magnitude of a DoRA",
    r"\.hada_": "a matrix of a LoHa",
    r"\.lokr_": "a matrix of a LoKr",
    r"\.on_input$|ia3_": "of an IA3",
    "oft_": "of an OFT",
    "vera_": "of a VeRA",
    "lora_mid": "the third matrix of a LoCon in Tucker form",
    "lora_embedding": "a matrix for an embedding",
    r"\.diff(_b)?$|modules_to_save": "a difference of whole weights",
    r"\.bias$": "a bias",
}
KOHYA = re.compile(r"lora_(te\d?|unet|transformer)_")
TEXT_ENCODER = re.compile(r"text_encoder(_\d)?\.|lora_te\d?_")
DENOISER = re.compile(r"(unet|transformer|diffusion_model)\.|lora_(unet|transformer)_|(double|single)_blocks\.")
# Settings of peft that change what adapters mean, and the one value of each that is applied.
PLAIN = {
    "peft_type": "LORA",
    "use_dora": False,
    "lora_bias": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
}
# Ways to begin that change the base model's own weights.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq")
REMEDY = "merge the adapter into its base model with the tool that made it, or take a plain LoRA"


def tensor_names(file: Path) -> list[str]:
    """The names of a safetensors file's tensors, from its header.

    Raises:
        UsageError: it is damaged.
    """
    try:
        with safe_open(file, "pt") as stored:
            return list(stored.keys())
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} holds no LoRA that diffusers can read ({error})") from error


def check_names(file: Path, names: Collection[str], component: str) -> None:
    """Refuse a file of which some tensor would not be applied.

    Args:
        component: diffusers' name of the network that the file is for.

    Raises:
        UsageError: adapters of another kind than LoRA, for another part of the model too, or in mixed naming.
    """
    for name in names:
        if not KNOWN.search(name):
            kind = next((kind for pattern, kind in KINDS.items() if re.search(pattern, name)), "unknown")
            raise UsageError(
                f"{file}: {name} is {kind}, and of an adapter only two matrices a layer and their alpha are applied: "
                f"{REMEDY}"
            )
    kohya = [name for name in names if KOHYA.match(name)]
    if others := [name for name in names if not KOHYA.match(name)] if kohya else []:
        raise UsageError(
            f"{file}: {kohya[0]} has one of kohya's names and {others[0]} one of diffusers', and a file is read in one "
            "naming: save each kind to a file of its own"
        )
    encoder = component.startswith("text_encoder")
    other, what = (DENOISER, "a denoiser") if encoder else (TEXT_ENCODER, "a text encoder")
    if stray := next((name for name in names if other.match(name)), None):
        raise UsageError(f"{file}: {stray} is for {what}, {_alone(component)}")


def check_parts(
    file: Path, names: Collection[str], converted: Collection[str], kohya: Mapping[str, str], parts: Sequence[str]
) -> None:
    """Refuse adapters for other parts than those that a file is read for, the first of which is the one wanted.

    Args:
        names: as they stand in the file.
        converted: as diffusers gives them, beginning with the part.
        kohya: how kohya's names for each part begin.
    """
    starts = {kohya[part].replace("te1", "te") for part in parts if part in kohya}
    ours = [KOHYA.match(name) for name in names]
    strays = [one.string for one in ours if starts and one and f"lora_{one[1]}".replace("te1", "te") not in starts]
    strays += [name for name in converted if name.partition(".")[0] not in parts]
    if strays:
        raise UsageError(f"{file}: {strays[0]} is not for the {parts[0]}, {_alone(parts[0])}")


def _alone(component: str) -> str:
    return f"and the file is read for the {component} alone: save the tensors of the {component} to a file of their own"


def layer_alphas(place: object, settings: Any, ranks: Mapping[str, int]) -> dict[str, float]:
    """Each layer's alpha by peft's settings, as of an update that is scaled by alpha / rank.

    Args:
        place: where the settings stand, for people.
        ranks: by layer, of its tensors; what the settings say of ranks is not used.

    Raises:
        UsageError: settings by which adapters mean more than the two matrices of each layer.
    """
    shaped(place, settings, {})
    for name, plain in PLAIN.items():
        if (value := settings.get(name)) and value != plain:
            raise UsageError(f"{place}: {name}={value} is not applied, only {name}={plain}: {REMEDY}")
    if str(begin := settings.get("init_lora_weights")).lower().startswith(CHANGED_BASE):
        raise UsageError(f"{place}: init_lora_weights={begin} changes the base model's own weights: {REMEDY}")
    usual = shaped(place, settings, {"lora_alpha": float})["lora_alpha"]
    given = shaped(place, settings.get("alpha_pattern") or {}, {str: float}, "alpha_pattern")
    for layer in given:
        if not re.fullmatch(r"\^?[\w.]+\$?", layer):
            raise UsageError(f"{place}: alpha_pattern names {layer}; it must name layers, not expressions for them")
    patterns = {layer.removesuffix("$"): alpha for layer, alpha in given.items()}
    alphas = {layer: next((one for key, one in patterns.items() if _names(key, layer)), usual) for layer in ranks}
    if settings.get("use_rslora"):  # scaled by alpha / sqrt(rank)
        return {layer: alpha * math.sqrt(ranks[layer]) for layer, alpha in alphas.items()}
    return alphas


def _names(pattern: str, layer: str) -> bool:
    """Whether a key of peft's patterns means a layer: its whole name, or the end of it."""
    return layer == pattern.removeprefix("^") or layer.endswith(f".{pattern}")
