"""`textcraftor export`: what a run tuned, or a merged mix, in the layouts that others load, with a model card."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from textcraftor.assets import HUB_ID
from textcraftor.errors import UsageError
from textcraftor.files.pictures import to_rgb
from textcraftor.files.reading import open_picture, read_json, read_yaml, shaped
from textcraftor.files.writing import finish, replacing_folder, write_text
from textcraftor.inference.mix import Mix
from textcraftor.inference.opening import open_model
from textcraftor.inference.sharing import public, take_paths_out
from textcraftor.models.model import ORIGINAL, Model
from textcraftor.models.run_record import TUNED, Base, RunRecord, parts_in
from textcraftor.models.saving import (
    PEFT_FILE,
    check_same,
    is_clip,
    plain_encoder,
    plain_state,
    published,
    save_whole,
    sharing,
    stock_adapters,
)
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

KOHYA_FILE = "lora.safetensors"
FORMATS = {
    "diffusers": "what was tuned, in folders that diffusers and transformers load, see below",
    "webui": "`text_encoder.safetensors`: each whole text encoder, under its published keys, for web UIs",
    "kohya": f"`{KOHYA_FILE}`: the adapters under the names of kohya, for A1111, ComfyUI and others",
    "pipeline": "`pipeline/`: the whole model with everything tuned in its place",
}
# What of a run's configuration and summary the model card shows.
SETTINGS = {
    "rewards": {str: object},
    "prompts": {"path": object},
    "sampling": {"scheduler": str, "steps": int, "guidance_scale": float},
}
CHANGE = {"mean": float, "low": float, "high": float, "n?": int}
FIGURES = {
    "steps": int,
    "batch_size": int,
    "prompts": int,
    "seeds": [int],
    "before": {str: float},
    "after": {str: float},
    "difference": {str: CHANGE},
}
CARD = Path(__file__).with_name("model_card.md.j2")


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot be exported, before any model is loaded and before anything is written."""
    mix = Mix.of(config)
    if not (mix.tuned or mix.denoiser):
        raise UsageError("there is nothing tuned to export: give tuned.a=<run folder>")
    if list(mix.all_weights) == [ORIGINAL] and not mix.tunes_denoiser:
        raise UsageError(f"the mix {mix} has nothing tuned in it to export: give mix.{next(iter(mix.tuned), 'a')}=1")
    runs_of(mix)
    sheet_of(mix)
    wanted = list(config.formats or [])
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise UsageError(f"formats={unknown} must be of {', '.join(FORMATS)}")
    if len(mix.all_weights) > 1 and not mix.merge:
        raise UsageError(f"the mix {mix} has several encoders, a file holds one: merge=true adds up their weights")
    if "kohya" in wanted and not lora_folders(mix):
        raise UsageError("formats=[kohya] holds adapters, and nothing here was tuned by LoRA alone: formats=[webui]")
    if config.push_to_hub is not None and not HUB_ID.fullmatch(config.push_to_hub):
        raise UsageError(f"push_to_hub={config.push_to_hub} must be owner/name")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"run_dir={folder} is not empty: choose another run_dir= or name=")


def only_run(mix: Mix) -> Path | None:
    """The one run whose parts are exported as they are; a merged mix is none."""
    as_it_is = all(mix.all_weights.get(name) == 1 for name in mix.encoders)
    whole = not mix.merge and mix.denoiser is None and len(mix.tuned) == 1 and as_it_is
    return Path(next(iter(mix.tuned.values()))) if whole else None


def lora_folders(mix: Mix) -> list[Path]:
    """The adapters that are exported as such."""
    run = only_run(mix)
    return [path for path in tuned_folders(run) if path.name.endswith("_lora")] if run else []


def run(config: DictConfig, folder: Path) -> None:
    """Write every format, read each file back by the stock loaders, and the model card; then upload, if asked."""
    check(config, folder)
    mix = Mix.of(config)
    opened = open_model(config, [mix])
    model, (schedule,) = opened.model, opened.schedules
    (encoder,) = schedule.late
    formats = list(
        config.formats or [name for name in ("diffusers", "webui") if name != "webui" or encoder != "original"]
    )
    adapters = [component_of(path) for path in lora_folders(mix)]
    if config.formats is None and adapters and all(part in model.family.kohya for part in adapters):
        formats.append("kohya")
    with replacing_folder(folder) as unfinished:
        for name in dict.fromkeys(formats):
            WRITERS[name](model, mix, encoder, unfinished)
        take_paths_out(unfinished)
        names = {encoder: TUNED} if encoder != ORIGINAL else {}
        base = replace(Base.of(config.model), path=public(config.model.path))
        write_record(model, base, schedule.renamed(names), parents_of(mix), unfinished)
        write_card(config, mix, schedule.to_dict(), formats, folder.name, unfinished)
        finish(unfinished, "export")
    if config.push_to_hub is not None:
        push(folder, config.push_to_hub)


def parents_of(mix: Mix) -> list[dict]:
    """The runs that a mix is made of."""
    return [{"run": public(str(path)), "weight": mix.all_weights.get(name, 1.0)} for name, path in mix.tuned.items()]


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
    """Load a text encoder's folder as others will, and refuse any key that is lost or changed."""
    kind: Any = type(model.encoders(ORIGINAL)[part])
    loaded, info = kind.from_pretrained(folder, output_loading_info=True, use_safetensors=True, dtype=torch.float32)
    lost = [*info["missing_keys"], *info["unexpected_keys"]]
    wanted, found = plain_state(model.encoders(encoder)[part]), loaded.state_dict()
    lost += [key for key, value in wanted.items() if not torch.equal(value.float().cpu(), found[key].float())]
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
    """Adapters of all networks in one file; what tells them apart is how the names begin, see `Family.kohya`."""
    names, file = model.family.kohya, folder / KOHYA_FILE
    folders = lora_folders(mix)
    if missing := [path.name for path in folders if component_of(path) not in names]:
        raise UsageError(f"formats=[kohya]: there are no names for the adapters of {missing[0]} of this family")
    found: dict[str, Tensor] = {}
    for path in folders:
        part = component_of(path)
        state, alphas = read_lora(lora_file(path), part, model)
        for down in downs_of(state):
            layer, start = down.rpartition(".lora_A")[0], names[part]
            name = f"{start}_{layer.replace('.', '_')}"
            up = state[down.replace(".lora_A.", ".lora_B.")]
            found[f"{name}.lora_down.weight"], found[f"{name}.lora_up.weight"] = state[down], up
            found[f"{name}.alpha"] = torch.tensor(float(alphas.get(layer, len(state[down]))))
    save_file({key: value.contiguous() for key, value in found.items()}, file, metadata={"format": "pt"})
    check_keys(load_file(file), found, file)
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


WRITERS = {"diffusers": write_diffusers, "webui": write_webui, "kohya": write_kohya, "pipeline": write_pipeline}


def check_keys(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: Path, exactly: bool = True) -> None:
    """Refuse, loudly, a file that does not hold every tensor as it was."""
    same = torch.equal if exactly else partial(torch.allclose, rtol=1e-4, atol=1e-7)
    lost = sorted(found.keys() ^ wanted.keys())
    lost += [key for key in wanted if key in found and not same(found[key].cpu(), wanted[key].cpu())]
    if lost:
        raise RuntimeError(f"{where}: {len(lost)} keys do not come back as they were, {lost[0]} among them")


def runs_of(mix: Mix) -> dict[str, dict[str, Any]]:
    """What the card tells of each run that was evaluated, by its name in the mix."""
    said = {}
    for name, path in mix.tuned.items():
        config, summary = Path(path) / "config.yaml", Path(path) / "summary.json"
        if config.exists() and summary.exists():
            settings = shaped(config, read_yaml(config), SETTINGS)
            said[name] = {"config": settings, **shaped(summary, read_json(summary), FIGURES)}
    return said


def sheet_of(mix: Mix) -> Image.Image | None:
    """The pictures before and after of a run that is exported as it is, where it has them."""
    run_folder = only_run(mix)
    file = run_folder / "before_after.png" if run_folder else None
    if file is None or not file.exists():
        return None
    with open_picture(file) as picture:
        return to_rgb(picture)


def write_card(
    config: DictConfig, mix: Mix, conditioning: Mapping, formats: list[str], title: str, folder: Path
) -> None:
    """`README.md`: what was tuned on what, with which result, and how to load each format."""
    said, picture = runs_of(mix), sheet_of(mix)
    if picture is not None:  # pixels alone, not what it says beside
        picture.save(folder / "before_after.png")
    data = ModelCardData(library_name="diffusers", tags=["text-to-image", "textcraftor"], base_model=hub_base(config))
    card = ModelCard.from_template(
        data,
        template_str=CARD.read_text(),
        cell=cell,
        title=title,
        base=public(config.model.path),
        prompts={name: public(str(run["config"]["prompts"]["path"])) for name, run in said.items()},
        runs=said,
        mixed="" if only_run(mix) else str(mix),
        loading=[loading_line(path) for path in tuned_folders(folder)],
        conditioning=conditioning,
        formats={name: FORMATS[name] for name in formats},
        picture=picture is not None,
    )
    card.save(folder / "README.md")


def loading_line(folder: Path) -> str:
    """The line of Python that puts a tuned part into the pipeline `pipe`."""
    part = component_of(folder)
    if folder.name == part:
        return f'pipe.{part} = type(pipe.{part}).from_pretrained("{folder.name}")'
    if (folder / PEFT_FILE).exists():
        return f'pipe.{part}.load_adapter("{folder.name}")'
    return f'pipe.load_lora_weights("{folder.name}")'


def cell(text: object) -> str:
    """Text that others wrote as plain words of a Markdown table: no markup, no links."""
    return re.sub(r"[^\w .,;+()/=-]", "", " ".join(str(text).replace("://", " ").split()))[:200]


def hub_base(config: DictConfig) -> str | None:
    """The base model where it is one of the hub's."""
    path = str(config.model.path)
    return path if HUB_ID.fullmatch(path) and not Path(path).exists() else None


def push(folder: Path, repo: str) -> None:
    """Upload a folder to a repository of the hub, made where there is none."""
    try:
        huggingface_hub.create_repo(repo, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Exported by TextCraftor")
    except (HfHubHTTPError, OSError) as error:
        raise UsageError(f"push_to_hub={repo}: {error}; the files are in {folder}") from error
