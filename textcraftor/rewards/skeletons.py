"""Scorers of the published sizes on the device `meta`: shapes alone, for plans of memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPVisionModelWithProjection, SiglipConfig, SiglipModel, SiglipVisionModel

from textcraftor.config.objects import path_of
from textcraftor.rewards.aesthetic import Aesthetic, LinearHead
from textcraftor.rewards.clip import ClipScore, PickScore
from textcraftor.rewards.ensemble import Ensemble
from textcraftor.rewards.hpsv2 import HPSv2
from textcraftor.rewards.mps import LAYERS, MPS, CrossModel
from textcraftor.rewards.open_clip import architecture_config
from textcraftor.rewards.total import RewardSum, parts_of


def aesthetic(reward: Mapping, tokenizer: Any) -> Aesthetic:
    """On a SigLIP where the path says so, else on LAION's CLIP."""
    if "siglip" in str(reward.get("clip")).lower():
        seen = siglip_config().vision_config
        return Aesthetic(SiglipVisionModel(seen), LinearHead(seen.hidden_size))
    config = architecture_config("ViT-L-14")
    return Aesthetic(CLIPVisionModelWithProjection(config.vision_config), LinearHead(config.projection_dim))


def clip(architecture: str) -> CLIPModel:
    return CLIPModel(architecture_config(architecture))


def siglip_config() -> SiglipConfig:
    """google/siglip-so400m-patch14-384."""
    tower = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    }  # fmt: skip
    ends = {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": 1}
    text = tower | ends | {"vocab_size": 32000, "max_position_embeddings": 64, "projection_size": 1152}
    return SiglipConfig(text_config=text, vision_config=tower | {"image_size": 384, "patch_size": 14})


def similarity(reward: Mapping, tokenizer: Any) -> ClipScore:
    """A SigLIP where the path says so, else TextCraftor's CLIP."""
    model = SiglipModel(siglip_config()) if "siglip" in str(reward.get("path")).lower() else clip("ViT-H-14")
    return ClipScore(model, tokenizer)


# By what configurations name: the published scorer that it loads, of the reward's arguments and a tokenizer.
BUILDERS: dict[str, Callable[[Mapping, Any], nn.Module]] = {
    "Aesthetic.load": aesthetic,
    "HPSv2.load": lambda reward, tokenizer: HPSv2(clip("ViT-H-14"), tokenizer, open_clip=True),
    "PickScore.load": lambda reward, tokenizer: PickScore(clip("ViT-H-14"), tokenizer),
    "ClipScore.load": similarity,
    "MPS.load": lambda reward, tokenizer: MPS(
        clip("ViT-H-14"), CrossModel(1024, LAYERS), tokenizer, "light", reward["threshold"]
    ),
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
    unknown, parts = list[str](), parts_of(config)

    def skeleton(name: str, reward: Mapping) -> nn.Module:
        if reward["_target_"] == path_of(Ensemble):
            return Ensemble({key: skeleton(f"{name}/{key}", one) for key, one in parts_of(reward["members"]).items()})
        builder = BUILDERS.get(".".join(str(reward.get("_target_")).split(".")[-2:]))
        if builder is None:
            unknown.append(name)
        return builder(reward, tokenizer) if builder else Uncounted()

    with torch.device("meta"):
        scorers = {name: skeleton(name, part.reward).to(dtype) for name, part in parts.items()}
    return RewardSum(scorers, {name: float(part.weight) for name, part in parts.items()}), unknown
