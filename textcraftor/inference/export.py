"""`textcraftor export`: what a run tuned, or a merged mix, in the layouts that others load, with a model card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from omegaconf import DictConfig
from PIL import Image

from textcraftor.assets import HUB_ID
from textcraftor.errors import UsageError
from textcraftor.files.pictures import to_rgb
from textcraftor.files.reading import open_picture, read_json, read_yaml, shaped
from textcraftor.files.writing import finish, replacing_folder
from textcraftor.inference.formats import FORMATS, WRITERS, lora_folders, only_run, write_record
from textcraftor.inference.mix import Mix
from textcraftor.inference.opening import open_model
from textcraftor.inference.sharing import public, take_paths_out
from textcraftor.models.model import ORIGINAL
from textcraftor.models.run_record import TUNED, Base
from textcraftor.models.saving import PEFT_FILE
from textcraftor.models.tuned import component_of, tuned_folders

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


def runs_of(mix: Mix) -> dict[str, dict[str, Any]]:
    """The settings and figures on the card, of each evaluated run, by its name in the mix."""
    runs = {}
    for name, path in mix.tuned.items():
        config, summary = Path(path) / "config.yaml", Path(path) / "summary.json"
        if config.exists() and summary.exists():
            settings = shaped(config, read_yaml(config), SETTINGS)
            runs[name] = {"config": settings, **shaped(summary, read_json(summary), FIGURES)}
    return runs


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
    """Write `README.md`: what was tuned on what, the results, and how to load each format."""
    runs, picture = runs_of(mix), sheet_of(mix)
    if picture is not None:  # pixels alone, not what it says beside
        picture.save(folder / "before_after.png")
    data = ModelCardData(library_name="diffusers", tags=["text-to-image", "textcraftor"], base_model=hub_base(config))
    card = ModelCard.from_template(
        data,
        template_str=CARD.read_text(),
        cell=cell,
        title=title,
        base=public(config.model.path),
        prompts={name: public(str(run["config"]["prompts"]["path"])) for name, run in runs.items()},
        runs=runs,
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
