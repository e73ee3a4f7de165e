"""Scorers of the published sizes on the device `meta`: shapes alone, for plans of memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPVisionModelWithProjection

from textcraftor.rewards.aesthetic import Aesthetic, LinearHead
from textcraftor.rewards.clip import ClipScore, PickScore
from textcraftor.rewards.hpsv2 import HPSv2
from textcraftor.rewards.open_clip import architecture_config
from textcraftor.rewards.total import RewardSum, parts_of


def aesthetic() -> Aesthetic:
    config = architecture_config("ViT-L-14")
    return Aesthetic(CLIPVisionModelWithProjection(config.vision_config), LinearHead(config.projection_dim))


def clip(architecture: str) -> CLIPModel:
    return CLIPModel(architecture_config(architecture))


# By what configurations name: the published scorer that it loads.
BUILDERS: dict[str, Callable[[Any], nn.Module]] = {
    "Aesthetic.load": lambda tokenizer: aesthetic(),
    "HPSv2.load": lambda tokenizer: HPSv2(clip("ViT-H-14"), tokenizer, open_clip=True),
    "PickScore.load": lambda tokenizer: PickScore(clip("ViT-H-14"), tokenizer),
    "ClipScore.load": lambda tokenizer: ClipScore(clip("ViT-H-14"), tokenizer),
}


class Uncounted(nn.Module):
    """A scorer of unknown size: it costs nothing here."""

    def forward(self, images: Tensor, prompts: Any) -> Tensor:
        return images.mean((1, 2, 3))


def skeleton_rewards(config: Mapping, dtype: torch.dtype, tokenizer: Any) -> tuple[RewardSum, list[str]]:
    """The scorers of a configuration, and the names of those that no size is known of.

    Args:
        dtype: of their weights.
        tokenizer: that of the CLIPs, of which the shapes matter alone.
    """
    scorers, unknown = dict[str, nn.Module](), []
    for name, part in parts_of(config).items():
        builder = BUILDERS.get(".".join(str(part.reward.get("_target_")).split(".")[-2:]))
        if builder is None:
            unknown.append(name)
        with torch.device("meta"):
            scorers[name] = (builder(tokenizer) if builder else Uncounted()).to(dtype)
    weights = {name: float(part.weight) for name, part in parts_of(config).items()}
    return RewardSum(scorers, weights), unknown
