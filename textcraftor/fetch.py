"""`textcraftor fetch`: everything that a configuration names, on this disk before it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
from omegaconf import DictConfig, OmegaConf

from textcraftor import assets
from textcraftor.errors import UsageError
from textcraftor.rewards.total import parts_of

ASSET_KEYS = (
    "checkpoint",
    "clip",
    "config",
    "detector",
    "head",
    "path",
    "processor",
    "recogniser",
    "tokenizer",
)  # others by their look
WITHOUT_WEIGHTS = ("processor", "tokenizer")  # what a key that ends so names is loaded without weights


def assets_of(config: DictConfig) -> dict[str, str]:
    """The assets that a configuration names, by key: model, prompts, a suite, what the scorers and a judge load."""
    by_key = {"model.path": config.model.path, "model.config": config.model.config or _lacking(config.model.path)}
    by_key |= {f"prompts.{key}": config.prompts[key] for key in ("path", "held_out")}
    suite = config.get("suite") or {}
    by_key |= {f"suite.{name}": path for name, path in suite.get("files", {}).items()}
    by_key |= {"suite.questions": suite.get("questions")}
    for group in ("judge", "understander"):
        node = config.get(group) or {}
        by_key |= {f"{group}.{key}": node.get(key) for key in ("path", "clip")}
    for name, part in parts_of(config.rewards).items():
        strings = _strings(OmegaConf.to_container(part.reward, resolve=True), f"rewards.{name}.reward")
        by_key |= {key: value for key, value in strings if _is_asset(key, value)}
    return {key: value for key, value in by_key.items() if value}


def _strings(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every string below a node with its key, those that are Hydra's own left out."""
    if isinstance(node, dict):
        for name, value in node.items():
            if not str(name).startswith("_"):
                yield from _strings(value, f"{key}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _strings(value, f"{key}.{index}")
    elif isinstance(node, str):
        yield key, node


def _is_asset(key: str, value: str) -> bool:
    if key.rpartition(".")[2] in ASSET_KEYS or assets.is_address(value) or assets.looks_local(value):
        return True
    return bool(assets.HUB_ID.fullmatch(value))


def is_local(value: str) -> bool:
    """Whether an asset lies at a path of this machine, rather than in a cache of downloads."""
    return not assets.is_address(value) and Path(value).expanduser().exists()


def get(key: str, value: str) -> Path:
    """Where an asset lies, downloaded first where needed.

    Raises:
        UsageError: it is not there and could not be downloaded.
    """
    if is_local(value):
        return Path(value).expanduser()
    if key.startswith(("prompts.", "suite.")) or assets.is_address(value) or value.endswith(assets.FILE_SUFFIXES):
        return assets.local_file(value, key)
    repo = assets.folder_or_id(value, key)
    if key == "model.config":
        with assets.hub_download(repo, key):
            return Path(huggingface_hub.snapshot_download(repo, allow_patterns=[*assets.SETTINGS]))
    if key == "model.path":
        return _pipeline(repo, key)
    return assets.hub_folder(repo, key, weights=not key.endswith(WITHOUT_WEIGHTS))


def _lacking(path: str) -> str | None:
    """The repository with the settings that a single file lacks and that do not come with TextCraftor."""
    from textcraftor.models.single_file import settings_repository

    file = Path(path).expanduser()
    return settings_repository(file) if file.is_file() else None


def _pipeline(repo: str, key: str) -> Path:
    """The local copy of what loading a model reads of its hub repository: one format of each part's weights."""
    from diffusers import DiffusionPipeline

    from textcraftor.models.model import family_of

    with assets.hub_download(repo, key):
        family = family_of(DiffusionPipeline.load_config(repo)["_class_name"])
        folder = Path(DiffusionPipeline.download(repo, **family.load_options))
    assets.check_folder(folder, repo, key)
    return folder


def size_of(path: Path) -> str:
    """The size of a file, or of all files in a folder, for people."""
    files = path.rglob("*") if path.is_dir() else [path]
    size: float = sum(file.stat().st_size for file in files if file.is_file())
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def check(config: DictConfig, folder: Path) -> None:
    """Refuse malformed addresses before anything is downloaded."""
    for key, value in assets_of(config).items():
        if assets.is_address(value):
            assets.parse(value, key)


def run(config: DictConfig, folder: Path) -> str:
    """Get every asset and print a line for each; nothing is written to `folder`.

    Returns:
        What there is to say at the end.

    Raises:
        UsageError: naming those that are missing, once all others are there.
    """
    check(config, folder)
    wanted, missing = assets_of(config), []
    for key, value in wanted.items():
        try:
            path = get(key, value)
        except UsageError as error:
            missing.append(str(error))
        else:
            print(f"{key}: {path} ({size_of(path)}{', local already' if is_local(value) else ''})", flush=True)
    if missing:
        count = f"{len(missing)} of {len(wanted)} assets are missing. " if len(missing) > 1 else ""
        raise UsageError(count + ". ".join(missing))
    return f"all {len(wanted)} assets are there"
