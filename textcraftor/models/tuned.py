"""Tuned parts from run folders, added to a model. They may come from strangers: safetensors and JSON alone are read,
names and shapes are compared with the model's own in the files' headers before a tensor is, nothing is built from what
the folder says."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils.peft_utils import scale_lora_layers
from safetensors import SafetensorError, safe_open
from torch import Tensor

from textcraftor.errors import UsageError
from textcraftor.models.stable_diffusion import StableDiffusion
from textcraftor.models.tuning import LORA_FILE, PARTS, prefixed

UNET_STEM = "diffusion_pytorch_model"


def tuned_folders(run: Path, parts: Sequence[str] = PARTS) -> list[Path]:
    """The folders of what a run tuned."""
    paths = [path for part in parts for path in (run / part, run / f"{part}_lora")]
    return [path for path in paths if path.is_dir()]


def check_confined(run: Path) -> None:
    """Refuse a run with a link that leads out of its folder; in the hub's cache, out of its repository's."""
    root = run.resolve()
    root = root.parents[1] if root.parent.name == "snapshots" else root
    paths = [run / "conditioning.json", run / "config.yaml", run / "summary.json", run / "before_after.png"]
    for folder in tuned_folders(run):
        paths += [folder, *folder.rglob("*")]
    for path in paths:
        if not path.resolve().is_relative_to(root):
            raise UsageError(f"{path} leads out of {run}, to {path.resolve()}: take the link away")


def load_text_encoder(model: StableDiffusion, run: Path, name: str, strength: float = 1.0) -> None:
    """Add a run's text encoder, whole or as adapters, to a model under a name, frozen, in float32.

    Raises:
        UsageError: nothing there, keys missing, or an encoder of another shape than the model's own.
    """
    original = model.text_encoders["original"]
    found = tuned_folders(run, ["text_encoder"])
    if not found:
        raise UsageError(f"{run} holds no text_encoder and no text_encoder_lora: give the folder of a finished run")
    for folder in found:
        if folder.name == "text_encoder":
            encoder = copy.deepcopy(original).float()
            own = {prefixed(key): key for key in encoder.state_dict() if not key.endswith("position_ids")}
            stored = read_like({key: encoder.state_dict()[own[key]] for key in own}, folder, "model")
            encoder.load_state_dict({own[key]: value for key, value in stored.items()}, strict=False)
        else:
            encoder = copy.deepcopy(original, {id(parameter): parameter for parameter in original.parameters()})
            add_adapters(encoder, folder, "text_encoder", name)
            scale_lora_layers(encoder, strength)
        model.text_encoders[name] = encoder.to(model.device).eval().requires_grad_(False)


def load_unet(model: StableDiffusion, folder: Path, strength: float = 1.0) -> None:
    """Put a tuned UNet's weights in the place of the model's own, or fuse adapters into them.

    Args:
        folder: a run or a pipeline with `unet/` or `unet_lora/`, or such a folder itself, or a LoRA's file.
        strength: of adapters.

    Raises:
        UsageError: there is no UNet, or one of another shape than the model's own.
    """
    found = tuned_folders(folder, ["unet"]) or [folder]
    for path in found:
        if path.is_dir() and list(path.glob(f"{UNET_STEM}*.safetensors")):
            model.unet.load_state_dict(read_like(model.unet.state_dict(), path, UNET_STEM))
        else:
            add_adapters(model.unet, path, "unet", "tuned")
            model.unet.fuse_lora(lora_scale=strength)
            model.unet.unload_lora()
    model.unet.eval().requires_grad_(False)
    model.tuned_unet = True


def read_like(wanted: dict[str, Tensor], folder: Path, stem: str) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors files, in float32, under the names and in the shapes of those wanted.

    Raises:
        UsageError: no file, a damaged one, a tensor that is missing, or one of another shape.
    """
    files = sorted(folder.glob(f"{stem}.safetensors")) or sorted(folder.glob(f"{stem}*.safetensors"))
    if not files:
        raise UsageError(f"{folder} holds no {stem}.safetensors: give the folder of a finished run")
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as stored:
                names = {prefixed(key) if prefixed(key) in wanted else key: key for key in stored.keys()}  # noqa: SIM118
                for name in names.keys() & wanted.keys():
                    shape = tuple(stored.get_slice(names[name]).get_shape())
                    if shape != wanted[name].shape:
                        raise UsageError(
                            f"{file}: {name} has the shape {shape} but the model's own {tuple(wanted[name].shape)}: "
                            "this was tuned for another base model"
                        )
                found |= {name: stored.get_tensor(names[name]).float() for name in names.keys() & wanted.keys()}
        except SafetensorError as error:
            raise UsageError(f"{file} is no whole safetensors file ({error}): copy it again") from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UsageError(f"{folder}: key {missing[0]} is missing; this was tuned for another base model, or is damaged")
    return found


def add_adapters(module: Any, path: Path, part: str, name: str) -> None:
    """Add LoRA weights, in any layout that diffusers reads, to a text encoder or a UNet.

    Raises:
        UsageError: no such file, adapters that do not fit, or none for this part.
    """
    file = path / LORA_FILE if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        raise UsageError(f"{path} holds no {LORA_FILE}: give the folder of a finished run")
    if file.stat().st_size > sum(parameter.nbytes for parameter in module.parameters()):
        raise UsageError(f"{file} is larger than the network that it adapts: another base model?")
    state, alphas = read_lora(file, part)
    load = getattr(StableDiffusionPipeline, f"load_lora_into_{part}")
    try:
        load(state, network_alphas=alphas or None, adapter_name=name, **{part: module})
    except (ValueError, RuntimeError, KeyError) as error:
        raise UsageError(f"{file}: its adapters do not fit this model ({str(error).splitlines()[0]})") from error
    loaded = sum("lora_A" in key for key, _ in module.named_parameters() if f".{name}." in key)
    if loaded != len(downs_of(state)):
        count = f"{len(downs_of(state)) - loaded} of {len(downs_of(state))}"
        raise UsageError(f"{file}: {count} adapters do not fit this model: another base model?")


def downs_of(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the first of each adapter's two matrices."""
    return [key for key in state if ".lora_A." in key]


def read_lora(file: Path, part: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The adapters of one network in a LoRA's file, and each one's alpha where the file says them.

    Of a file's metadata the alphas alone are used: ranks and layers are those of the tensors.

    Raises:
        UsageError: nothing that diffusers can read, or no adapters for this part.
    """
    try:
        state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
            file.parent, weight_name=file.name, return_lora_metadata=True, use_safetensors=True
        )
    except (SafetensorError, ValueError, OSError) as error:
        raise UsageError(f"{file} holds no LoRA that diffusers can read ({error})") from error
    state = {peft_name(key): value for key, value in state.items() if key.startswith(f"{part}.")}
    if not downs_of(state):
        raise UsageError(f"{file} holds no adapters for a {part}")
    said = {key: value for key, value in (alphas or {}).items() if key.startswith(f"{part}.")}
    found = {
        f"{peft_name(key.removesuffix('alpha')).split('.lora_')[0].rstrip('.')}.alpha": float(a)
        for key, a in said.items()
    }
    if metadata and not found:
        patterns = metadata.get(f"{part}.alpha_pattern") or {}
        usual = float(metadata.get(f"{part}.lora_alpha", 1.0))
        modules = {key.rpartition(".lora_")[0] for key in downs_of(state)}
        found = {f"{m}.alpha": float(patterns.get(m.removeprefix(f"{part}."), usual)) for m in modules}
    return state, found


def peft_name(key: str) -> str:
    """A tensor of adapters, under any of the names that diffusers gives it, under peft's.

    diffusers does the same for a whole file at once, and takes a file whose layers have names of two kinds, as kohya's
    of a text encoder's attention and of its other layers do, for one of a single kind.
    """
    key = re.sub(r"\.self_attn\.to_(q|k|v|out)_lora\.", r".self_attn.\1_proj.lora.", key)
    key = re.sub(r"\.processor\.to_(q|k|v)_lora\.", r".to_\1.lora.", key)
    key = key.replace(".processor.to_out_lora.", ".to_out.0.lora.")
    key = re.sub(r"\.lora(_linear_layer)?\.down\.", ".lora_A.", key)
    return re.sub(r"\.lora(_linear_layer)?\.up\.", ".lora_B.", key)


def read_json(file: Path) -> dict:
    """A JSON object that a stranger may have written.

    Raises:
        UsageError: no such file, or something else in it.
    """
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"{file} holds a {type(found).__name__}, not a JSON object")
    return found


@torch.no_grad()
def merge_text_encoders(model: StableDiffusion, weights: dict[str, float], name: str) -> None:
    """One encoder whose weights are the weighted sum of others', adapters included: no extra cost when it encodes."""
    total: dict[str, Tensor] = {}
    for part, weight in weights.items():
        for key, value in plain_state(model.text_encoders[part]).items():
            total[key] = total.get(key, 0) + weight * value.double()
    merged = copy.deepcopy(model.text_encoders["original"]).float()
    merged.load_state_dict({key: value.float() for key, value in total.items()})
    model.text_encoders[name] = merged.eval().requires_grad_(False)


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
