"""The published layouts of models, by which a model is built without its weights: for plans, benchmarks and tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import nn
from transformers import BatchEncoding

from textcraftor.errors import UsageError

FOLDER = Path(__file__).with_name("layouts")
PART_FILES = ("config.json", "scheduler_config.json")


def layouts() -> list[str]:
    """The names of the published layouts."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def read_layout(path: str) -> dict[str, Any]:
    """A layout by its name, or that of a folder in diffusers' format, which need not hold any weights.

    Returns:
        the pipeline's `_class_name` and, by part, its configuration with the class's name; a tokenizer's class alone.
    """
    if (FOLDER / f"{path}.json").is_file():
        return json.loads((FOLDER / f"{path}.json").read_text())
    folder = Path(path).expanduser()
    if not (folder / "model_index.json").is_file():
        raise UsageError(f"{path} is neither a folder with a model_index.json nor one of {', '.join(layouts())}")
    layout = json.loads((folder / "model_index.json").read_text())
    for part, kind in layout.items():
        if isinstance(kind, list) and kind[1] is not None:
            file = next((folder / part / name for name in PART_FILES if (folder / part / name).is_file()), None)
            layout[part] = {**json.loads(file.read_text()), "_class_name": kind[1]} if file else kind[1]
    return layout


def build_part(config: Mapping[str, Any]) -> nn.Module | SchedulerMixin:
    """A part of a pipeline with random weights, as its configuration says."""
    name = config["_class_name"]
    kind: Any = getattr(diffusers, name, None) or getattr(transformers, name)
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    if hasattr(kind, "from_config") and not hasattr(kind, "config_class"):
        return kind.from_config(settings)
    return kind._from_config(kind.config_class(**settings))


class StandInTokenizer:
    """A tokenizer's shapes, for pipelines that hold no weights: every text is padding."""

    unk_token_id, chat_template = None, ""

    def __init__(self, kind: str) -> None:
        self.model_max_length = 77 if kind == "CLIPTokenizer" else 512

    def __call__(self, texts: Sequence[str], max_length: int | None = None, **options: Any) -> BatchEncoding:
        ids = torch.zeros(
            1 if isinstance(texts, str) else len(texts), max_length or self.model_max_length, dtype=torch.long
        )
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def batch_decode(self, ids: torch.Tensor) -> list[str]:
        return [""] * len(ids)

    def tokenize(self, text: str) -> list[str]:
        return []

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        return messages[0]["content"]


def skeleton(layout: Mapping[str, Any], dtypes: Mapping[str, torch.dtype]) -> DiffusionPipeline:
    """A pipeline of shapes alone, on the device `meta`, each part in its dtype."""
    tokenizers = {part: StandInTokenizer(kind) for part, kind in layout.items() if part.startswith("tokenizer")}
    pipeline = build_pipeline(layout, tokenizers, "meta")
    for name, part in pipeline.components.items():
        for tensor in part.parameters() if isinstance(part, nn.Module) else ():
            tensor.data = tensor.data.to(dtypes.get(name, dtypes["default"]))
    return pipeline


def build_pipeline(layout: Mapping[str, Any], tokenizers: Mapping[str, Any], device: str = "cpu") -> DiffusionPipeline:
    """A pipeline of a layout with random weights; on the device `meta` it has shapes alone, and takes no memory.

    Args:
        tokenizers: by part.
    """
    parts = dict[str, Any]()
    for name, config in layout.items():
        if isinstance(config, Mapping):
            with torch.device("cpu" if name == "scheduler" else device):  # a schedule is numbers, not shapes
                parts[name] = build_part(config)
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    kind = getattr(diffusers, layout["_class_name"])
    flags = {name: value for name, value in layout.items() if isinstance(value, bool)}
    missing = {name: None for name in kind._optional_components if name not in parts}
    if "requires_safety_checker" in kind.__init__.__code__.co_varnames:
        flags["requires_safety_checker"] = False
    return kind(**{**missing, **parts, **tokenizers, **flags})
