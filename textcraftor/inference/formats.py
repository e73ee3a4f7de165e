"""The formats of `textcraftor export`, each read back by the stock loader before the command ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from textcraftor.errors import UsageError
from textcraftor.files.writing import write_text
from textcraftor.inference.mix import Mix
from textcraftor.models.model import ORIGINAL, Model
from textcraftor.models.original_names import own_names
from textcraftor.models.published_names import is_clip, published, weights_of
from textcraftor.models.run_record import Base, RunRecord, parts_in
from textcraftor.models.saving import check_same, plain_encoder, plain_state, save_whole, sharing, stock_adapters
from textcraftor.models.single_file import marks
from textcraftor.models.tuned import (
    add_adapters,
    component_of,
    copy_part,
    downs_of,
    fitted,
    lora_file,
    read_lora,
    tuned_folders,
)
from textcraftor.sampling.conditioning import ConditioningSchedule

KOHYA_FILE, CHECKPOINT_FILE = "lora.safetensors", "checkpoint.safetensors"
FORMATS = {
    "diffusers": "what was tuned, in folders that diffusers and transformers load, see below",
    "webui": "`text_encoder.safetensors`: each whole text encoder, under its published keys, for web UIs",
    "kohya": f"`{KOHYA_FILE}`: the adapters under the names of kohya, for A1111, ComfyUI and others",
    "checkpoint": f"`{CHECKPOINT_FILE}`: the whole model in one file, in the original layout, for web UIs",
    "pipeline": "`pipeline/`: the whole model with everything tuned in its place",
}


def only_run(mix: Mix) -> Path | None:
    """The one run whose parts are exported as they are; a merged mix is none."""
    as_it_is = all(mix.all_weights.get(name) == 1 for name in mix.encoders)
    whole = not mix.merge and mix.denoiser is None and len(mix.tuned) == 1 and as_it_is
    return Path(next(iter(mix.tuned.values()))) if whole else None


def lora_folders(mix: Mix) -> list[Path]:
    """The adapters that are exported as such."""
    run = only_run(mix)
    return [path for path in tuned_folders(run) if path.name.endswith("_lora")] if run else []


def write_record(model: Model, base: Base, schedule: ConditioningSchedule, parents: list[dict], folder: Path) -> None:
    """`run.json` of a folder that holds what was tuned, by which our own commands take it for a run."""
    RunRecord(type(model.pipeline).__name__, base, parts_in(folder), schedule.to_dict(), parents).write(folder)


def tuned_parts(model: Model, encoder: str) -> dict[str, nn.Module]:
    """The text encoders of a reader that are not the pipeline's own, by diffusers' names."""
    originals = model.encoders(ORIGINAL)
    return {part: one for part, one in model.encoders(encoder).items() if one is not originals[part]}


def write_diffusers(model: Model, mix: Mix, encoder: str, folder: Path) -> None:
    run_folder = only_run(mix)
    if run_folder is not None:
        for path in tuned_folders(run_folder):
            copy_part(model, path, folder)
            if path.name != component_of(path):
                read_adapters_back(model, folder / path.name)
    else:
        write_text_encoders(model, encoder, folder)
        if model.tuned_denoiser:
            model.denoiser.save_pretrained(folder / model.family.denoiser)
    for part in tuned_parts(model, encoder):
        if (folder / part).exists():
            read_back(model, encoder, part, folder / part)


def write_text_encoders(model: Model, encoder: str, folder: Path) -> None:
    """Every whole text encoder that was tuned, adapters merged into its weights."""
    for part in tuned_parts(model, encoder):
        save_whole(plain_encoder(model, encoder, part), folder / part)


def read_back(model: Model, encoder: str, part: str, folder: Path) -> None:
    """Load a text encoder's folder with transformers, and refuse any lost or changed key."""
    kind: Any = type(model.encoders(ORIGINAL)[part])
    loaded, info = kind.from_pretrained(folder, output_loading_info=True, use_safetensors=True, dtype=torch.float32)
    lost = [*info["missing_keys"], *info["unexpected_keys"]]
    wanted, stored = plain_state(model.encoders(encoder)[part]), loaded.state_dict()
    lost += [key for key, value in wanted.items() if not torch.equal(value.float().cpu(), stored[key].float())]
    if lost:
        raise RuntimeError(f"{folder}: {len(lost)} keys do not come back as they were, {lost[0]} among them")


def read_adapters_back(model: Model, folder: Path) -> None:
    """Load a folder of adapters as others will, and refuse any tensor that is lost or changed."""
    part = component_of(folder)
    network = model.denoiser if part == model.family.denoiser else model.encoders(ORIGINAL)[part]
    wanted, _ = fitted(network, *read_lora(lora_file(folder), part, model))
    check_same(folder, stock_adapters(network, part, type(model.pipeline), folder), wanted)


def write_webui(model: Model, mix: Mix, encoder: str, folder: Path) -> None:
    for part, tuned in tuned_parts(model, encoder).items():
        stored = plain_state(tuned).items()
        state = {published(key, tuned): value.detach().cpu().clone().contiguous() for key, value in stored}
        file = folder / f"{part}.safetensors"
        save_file(state, file, metadata={"format": "pt"})
        check_keys(load_file(file), state, file)


def write_kohya(model: Model, mix: Mix, encoder: str, folder: Path) -> None:
    """Write the adapters of all networks into one file; the key prefix names the network, see `Family.kohya`."""
    names, file = model.family.kohya, folder / KOHYA_FILE
    folders = lora_folders(mix)
    if missing := [path.name for path in folders if component_of(path) not in names]:
        raise UsageError(f"formats=[kohya]: there are no names for the adapters of {missing[0]} of this family")
    tensors: dict[str, Tensor] = {}
    for path in folders:
        part = component_of(path)
        state, alphas = read_lora(lora_file(path), part, model)
        for down in downs_of(state):
            layer, start = down.rpartition(".lora_A")[0], names[part]
            name = f"{start}_{layer.replace('.', '_')}"
            up = state[down.replace(".lora_A.", ".lora_B.")]
            tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = state[down], up
            tensors[f"{name}.alpha"] = torch.tensor(float(alphas.get(layer, len(state[down]))))
    metadata = described(model, mix, "/lora") | lora_metadata(model, tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata=metadata)
    check_keys(load_file(file), tensors, file)
    for path in folders:
        part = component_of(path)
        network = model.denoiser if part == model.family.denoiser else model.encoders(ORIGINAL)[part]
        if part in model.family.kohya_readers:
            others = [component_of(one) for one in folders if one != path]
            read = [
                changes_of(read_again(network, model, one, part, beside), "again")
                for one, beside in ((file, others), (path, []))
            ]
            check_keys(read[0], read[1], file, exactly=False)


def lora_metadata(model: Model, state: Mapping[str, Tensor]) -> dict[str, str]:
    """What kohya's tools write beside adapters: A1111 hides those of another version than the model's by it."""
    version = model.family.version(model.pipeline)
    ranks = {str(len(one)) for key, one in state.items() if key.endswith(".lora_down.weight")}
    alphas = {f"{one.item():g}" for key, one in state.items() if key.endswith(".alpha")}
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": ranks.pop() if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": alphas.pop() if len(alphas) == 1 else "Dynamic",
    }
    if version is not None:
        metadata |= {
            "ss_base_model_version": version.kohya,
            "ss_v2": str(version.kohya.startswith("sd_v2")),
        }
    return metadata


def described(model: Model, mix: Mix, kind: str = "") -> dict[str, str]:
    """A single file's header by Stability's ModelSpec 1.0.0, which web UIs show.

    Args:
        kind: what follows the architecture's name where the file is no whole model.
    """
    run, version = only_run(mix), model.family.version(model.pipeline)
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": run.resolve().name if run else str(mix),
        "modelspec.implementation": "diffusers",
    }
    return metadata if version is None else metadata | {"modelspec.architecture": version.architecture + kind}


def write_checkpoint(model: Model, mix: Mix, encoder: str, folder: Path) -> None:
    """The whole model in one file under the names of the original code, read back by diffusers' converters."""
    names = model.family.single_file_names(model.pipeline)
    if not names:
        kind = type(model.pipeline).__name__
        raise UsageError(
            f"formats=[checkpoint]: there is no single-file layout for this {kind}: take formats=[pipeline]"
        )
    tuned, file = tuned_parts(model, encoder), folder / CHECKPOINT_FILE
    networks: dict[str, Any] = model.pipeline.components | model.encoders(ORIGINAL)
    networks |= {model.family.denoiser: model.denoiser, **{part: plain_encoder(model, encoder, part) for part in tuned}}
    networks = {part: networks[part] for part in names if networks.get(part) is not None}
    tensors = marks(model.pipeline.scheduler)
    for part, network in networks.items():
        tensors |= names[part].tensors(network)
    save_file(apart(tensors), file, metadata=described(model, mix))
    stored = load_file(file)
    for part, network in networks.items():
        check_same(file, names[part].read_back(stored, network), own_names(weights_of(network)))


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, none of which shares its memory with another, as safetensors wants them."""
    result, places = dict[str, Tensor](), set[int]()
    for key, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        result[key] = plain.clone() if plain.data_ptr() in places else plain
        places.add(plain.data_ptr())
    return result


def read_again(network: nn.Module, model: Model, path: Path, part: str, others: Sequence[str]) -> nn.Module:
    """A network with the adapters that a file or folder holds for it, and perhaps for others."""
    shared = sharing(network)
    add_adapters(shared, model, path, part, "again", others)
    return shared


def changes_of(network: nn.Module, name: str) -> dict[str, Tensor]:
    """What a network's adapters of that name add to each layer's weights."""
    layers = {key: layer for key, layer in network.named_modules() if name in getattr(layer, "scaling", {})}
    return {key: layer.get_delta_weight(name) for key, layer in layers.items()}


def write_pipeline(model: Model, mix: Mix, encoder: str, folder: Path) -> None:
    path, tuned = folder / "pipeline", tuned_parts(model, encoder)
    model.pipeline.save_pretrained(path)
    for part, original in model.encoders(ORIGINAL).items():
        module = plain_encoder(model, encoder, part) if part in tuned else original
        if part in tuned or is_clip(module):
            shutil.rmtree(path / part)
            save_whole(module, path / part)
            read_back(model, encoder, part, path / part)
        write_vocabulary(path / part.replace("text_encoder", "tokenizer"))
    again = DiffusionPipeline.from_pretrained(path, **model.family.load_options)
    denoiser = model.family.denoiser
    check_keys(getattr(again, denoiser).state_dict(), model.denoiser.state_dict(), path / denoiser)


def write_vocabulary(folder: Path) -> None:
    """`vocab.json` and `merges.txt` of a CLIP's tokenizer, which transformers 5 leaves out and all before it need."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    if model["type"] != "BPE":
        return
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    write_text(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *pairs, ""]))


WRITERS = {
    "diffusers": write_diffusers,
    "webui": write_webui,
    "kohya": write_kohya,
    "checkpoint": write_checkpoint,
    "pipeline": write_pipeline,
}


def check_keys(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: Path, exactly: bool = True) -> None:
    """Refuse a file that does not hold every tensor unchanged."""
    same = torch.equal if exactly else partial(torch.allclose, rtol=1e-4, atol=1e-7)
    lost = sorted(stored.keys() ^ wanted.keys())
    lost += [key for key in wanted if key in stored and not same(stored[key].cpu(), wanted[key].cpu())]
    if lost:
        raise RuntimeError(f"{where}: {len(lost)} keys do not come back as they were, {lost[0]} among them")
