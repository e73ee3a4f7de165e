"""`textcraftor export`: what a run tuned, or a merged mix, in the layouts that others load, with a model card."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
import torch
import yaml
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from textcraftor.assets import HUB_ID, is_address
from textcraftor.errors import UsageError
from textcraftor.inference.mix import Mix
from textcraftor.models.loading import load_model
from textcraftor.models.stable_diffusion import StableDiffusion
from textcraftor.models.tuned import LORA_FILE, add_adapters, plain_state, read_lora, tuned_folders
from textcraftor.models.tuning import PARTS, prefixed, save_text_encoder

WEBUI_FILE, KOHYA_FILE = "text_encoder.safetensors", "lora.safetensors"
FORMATS = {
    "diffusers": "what was tuned, in the folders of diffusers: `CLIPTextModel.from_pretrained`, `load_lora_weights`",
    "webui": f"`{WEBUI_FILE}`: the whole text encoder, its keys beginning with `text_model.`, for web UIs",
    "kohya": f"`{KOHYA_FILE}`: the adapters under the names of kohya, for A1111, ComfyUI and others",
    "pipeline": "`pipeline/`: the whole model with everything tuned in its place",
}
CARD = Path(__file__).with_name("model_card.md.j2")


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot be exported, before any model is loaded and before anything is written."""
    mix = Mix.of(config)
    if not (mix.tuned or mix.unet):
        raise UsageError("there is nothing tuned to export: give tuned.a=<run folder>")
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
    encoders = [name for name in mix.all_weights if name != "original"]
    whole = (
        not mix.merge
        and mix.unet is None
        and len(mix.tuned) == 1
        and all(mix.all_weights.get(n) == 1 for n in encoders)
    )
    return Path(next(iter(mix.tuned.values()))) if whole else None


def lora_folders(mix: Mix) -> list[Path]:
    """The adapters that are exported as such."""
    run = only_run(mix)
    return [path for path in tuned_folders(run) if path.name.endswith("_lora")] if run else []


def run(config: DictConfig, folder: Path) -> None:
    """Write every format, read each file back by the stock loaders, and the model card; then upload, if asked."""
    check(config, folder)
    mix = Mix.of(config)
    model = load_model(config)
    mix.load_unet(model)
    schedule = mix.schedule(model, model.scheduler("ddim", 1))
    (encoder,) = schedule.late
    formats = list(
        config.formats or [name for name in ("diffusers", "webui") if name != "webui" or encoder != "original"]
    )
    if config.formats is None and lora_folders(mix):
        formats.append("kohya")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name in formats:
            WRITERS[name](model, mix, encoder, partial)
        (partial / "conditioning.json").write_text(json.dumps(as_own(schedule.to_dict(), encoder), indent=2))
        write_card(config, mix, schedule.to_dict(), formats, partial)
        folder.mkdir(parents=True, exist_ok=True)
        for path in partial.iterdir():
            path.rename(folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if config.push_to_hub is not None:
        push(folder, config.push_to_hub)


def as_own(schedule: dict, encoder: str) -> dict:
    """A schedule as runs write it: what was tuned is called `tuned`."""
    names = {encoder: "tuned"} if encoder != "original" else {}
    stages = {
        stage: {names.get(name, name): weight for name, weight in schedule[stage].items()}
        for stage in ("late", "early")
    }
    return {**schedule, **stages}


def write_diffusers(model: StableDiffusion, mix: Mix, encoder: str, folder: Path) -> None:
    run_folder = only_run(mix)
    if run_folder is not None:
        for path in tuned_folders(run_folder):
            shutil.copytree(path, folder / path.name)
    else:
        if encoder != "original":
            write_text_encoder(model, encoder, folder / "text_encoder")
        if model.tuned_unet:
            model.unet.save_pretrained(folder / "unet")
    if (folder / "text_encoder").exists():
        read_back(model, encoder, folder / "text_encoder")


def write_text_encoder(model: StableDiffusion, encoder: str, folder: Path) -> None:
    """The whole encoder, adapters merged into its weights."""
    plain = CLIPTextModel(model.text_encoders["original"].config)
    plain.load_state_dict(plain_state(model.text_encoders[encoder]))
    save_text_encoder(plain, folder)


def read_back(model: StableDiffusion, encoder: str, folder: Path) -> None:
    """Load a `text_encoder/` folder as others will, and refuse any key that is lost or changed."""
    loaded, info = CLIPTextModel.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    lost = [*info["missing_keys"], *info["unexpected_keys"]]
    wanted, found = plain_state(model.text_encoders[encoder]), loaded.state_dict()
    lost += [key for key, value in wanted.items() if not torch.equal(value.float().cpu(), found[key].float())]
    if lost:
        raise RuntimeError(f"{folder}: {len(lost)} keys do not come back as they were, {lost[0]} among them")


def write_webui(model: StableDiffusion, mix: Mix, encoder: str, folder: Path) -> None:
    state = {prefixed(key): value.contiguous() for key, value in plain_state(model.text_encoders[encoder]).items()}
    save_file(state, folder / WEBUI_FILE, metadata={"format": "pt"})
    check_keys(load_file(folder / WEBUI_FILE), state, folder / WEBUI_FILE)


def write_kohya(model: StableDiffusion, mix: Mix, encoder: str, folder: Path) -> None:
    """Adapters of both networks in one file; kohya's name for the only text encoder is `lora_te`."""
    found: dict[str, Tensor] = {}
    for path in lora_folders(mix):
        state, alphas = read_lora(path / LORA_FILE, path.name.removesuffix("_lora"))
        converted = {
            key.replace("lora_te1_", "lora_te_"): value for key, value in convert_state_dict_to_kohya(state).items()
        }
        for key in [key for key in converted if key.endswith(".alpha")]:
            alpha = next((a for name, a in alphas.items() if kohya_module(name) == key.removesuffix(".alpha")), None)
            converted[key] = torch.tensor(float(alpha if alpha is not None else converted[key]))
        if len(converted) != len(state) // 2 * 3:
            raise RuntimeError(f"{path}: {len(state)} tensors became {len(converted)}")
        found |= {key: value.contiguous() for key, value in converted.items()}
    save_file(found, folder / KOHYA_FILE, metadata={"format": "pt"})
    for path in lora_folders(mix):
        part = path.name.removesuffix("_lora")
        network = model.unet if part == "unet" else model.text_encoders["original"]
        read = []
        for file in (folder / KOHYA_FILE, path):
            shared = copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
            add_adapters(shared, file, part, "again")
            read.append(adapters_of(shared, "again"))
        check_keys(read[0], read[1], folder / KOHYA_FILE)


def adapters_of(network: nn.Module, name: str) -> dict[str, Tensor]:
    """The matrices of a network's adapters of that name, and each one's scale."""
    found = {key.replace(f".{name}.", "."): value for key, value in network.named_parameters() if f".{name}." in key}
    layers = {key: layer for key, layer in network.named_modules() if name in getattr(layer, "scaling", {})}
    return found | {f"{key}.scaling": torch.tensor(layer.scaling[name]) for key, layer in layers.items()}


def kohya_module(alpha: str) -> str:
    """kohya's name of the module that an alpha of diffusers belongs to."""
    module = alpha.removesuffix(".alpha").replace("text_encoder.", "lora_te.").replace("unet.", "lora_unet.", 1)
    return module.replace(".", "_")


def write_pipeline(model: StableDiffusion, mix: Mix, encoder: str, folder: Path) -> None:
    path = folder / "pipeline"
    model.pipeline.save_pretrained(path)
    write_vocabulary(path / "tokenizer")
    if encoder != "original":
        shutil.rmtree(path / "text_encoder")
        write_text_encoder(model, encoder, path / "text_encoder")
        read_back(model, encoder, path / "text_encoder")
    again = StableDiffusionPipeline.from_pretrained(path, safety_checker=None, requires_safety_checker=False)
    check_keys(again.unet.state_dict(), model.unet.state_dict(), path / "unet")


def write_vocabulary(folder: Path) -> None:
    """`vocab.json` and `merges.txt`, which transformers 5 leaves out and everything before it needs."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")


WRITERS = {"diffusers": write_diffusers, "webui": write_webui, "kohya": write_kohya, "pipeline": write_pipeline}


def check_keys(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: Path) -> None:
    """Refuse, loudly, a file that does not hold every tensor as it was."""
    lost = sorted(found.keys() ^ wanted.keys())
    lost += [key for key in wanted if key in found and not torch.equal(found[key].cpu(), wanted[key].cpu())]
    if lost:
        raise RuntimeError(f"{where}: {len(lost)} keys do not come back as they were, {lost[0]} among them")


def write_card(config: DictConfig, mix: Mix, conditioning: Mapping, formats: list[str], folder: Path) -> None:
    """`README.md`: what was tuned on what, with which result, and how to load each format."""
    runs = {name: Path(path) for name, path in mix.tuned.items()}
    said = {}
    for name, path in runs.items():
        found = {key: path / key for key in ("config.yaml", "summary.json")}
        if all(file.exists() for file in found.values()):
            said[name] = {
                "config": yaml.safe_load(found["config.yaml"].read_text(encoding="utf-8")),
                **json.loads(found["summary.json"].read_text()),
            }
            if (path / "before_after.png").exists() and only_run(mix) == path:
                shutil.copy(path / "before_after.png", folder)
    data = ModelCardData(library_name="diffusers", tags=["text-to-image", "textcraftor"], base_model=hub_base(config))
    card = ModelCard.from_template(
        data,
        template_str=CARD.read_text(),
        title=folder.name.removeprefix(".").removesuffix(".partial"),
        base=public(config.model.path),
        prompts={name: public(run["config"].prompts.path) for name, run in said.items()},
        runs=said,
        mixed="" if only_run(mix) else str(mix),
        parts=[path.name for path in folder.iterdir() if path.name.removesuffix("_lora") in PARTS],
        conditioning=conditioning,
        formats={name: FORMATS[name] for name in formats},
        picture=(folder / "before_after.png").exists(),
    )
    card.save(folder / "README.md")


def public(path: str) -> str:
    """What others may read of a path: hub ids and addresses as they are, of a local one its name."""
    return path if is_address(path) or not Path(path).exists() else Path(path).name


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
