"""The names of a CLIP's weights in published files, whatever version of transformers built it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

PREFIX = "text_model."  # of a CLIP's weights as published


def is_clip(module: Any) -> bool:
    """Whether a network is a CLIP's text tower."""
    return getattr(module.config, "model_type", "") == "clip_text_model"


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The state of a network that files hold: counters that can be computed are left out."""
    return {key: value for key, value in module.state_dict().items() if not key.endswith("position_ids")}


def published(key: str, module: Any) -> str:
    """The name of a weight in published files."""
    is_plain = is_clip(module) and not key.startswith((PREFIX, "text_projection."))
    return PREFIX + key if is_plain else key
