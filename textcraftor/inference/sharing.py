"""What a folder that is shared does not say: where on this disk something lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from textcraftor.assets import is_address, looks_local
from textcraftor.files.writing import write_json


def public(path: str) -> str:
    """What others may read of a path: hub ids and addresses as they are, of a local one its name."""
    return Path(path).name if is_local(path) else path


def take_paths_out(folder: Path) -> None:
    """Remove the local paths that diffusers, transformers and peft write, from a folder's JSON files and safetensors
    headers."""
    for file in sorted(folder.rglob("*.json")):
        stored = json.loads(file.read_text(encoding="utf-8"))
        if (without := without_paths(stored)) != stored:
            write_json(file, without)
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
        cleaned = {name: without_paths_in(text) for name, text in metadata.items()}
        if cleaned != metadata:
            save_file(load_file(file), file, metadata=cleaned)


def without_paths_in(text: str) -> str:
    """The same of a text of a file's header that is JSON, as that of adapters; any other text stays."""
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        return text
    without = without_paths(stored)
    return text if without == stored else json.dumps(without, indent=2)


def without_paths(value: Any) -> Any:
    """A JSON value without local paths in the entries that name the place of a model."""
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {name: one for name, one in value.items() if not (name.endswith("name_or_path") and is_local(one))}
    return {name: without_paths(one) for name, one in kept.items()}


def is_local(path: Any) -> bool:
    """Whether a name of a model is a path of this disk, also of something that is no longer there."""
    return isinstance(path, str) and not is_address(path) and (looks_local(path) or Path(path).exists())
