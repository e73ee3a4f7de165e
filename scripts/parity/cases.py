"""The scorers under comparison: the published package's job, the random weights, and how ours is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.image_utils import OPENAI_CLIP_STD

from textcraftor.rewards.aesthetic import Aesthetic
from textcraftor.rewards.base import Reward
from textcraftor.rewards.clip import ClipScore, PickScore
from textcraftor.rewards.hpsv2 import HPSv2
from textcraftor.rewards.image_reward import ImageReward
from textcraftor.rewards.open_clip import architecture_config, to_transformers

EOS = 2  # what the published configs say, although the end token's id is 49407
MED = {  # BLIP's published med_config.json
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "add_type_embeddings": False,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}


@dataclass(frozen=True)
class Case:
    """One scorer.

    Args:
        name: in the table.
        runner: the module of `parity` that runs the original.
        environment: the one that it runs in.
        job: what the runner needs to know.
        load: ours.
        prepare: writes what the runner's own `make` cannot.
        published: the package or code of the original.
        std: the largest standard deviation that its preprocessing divides by.
    """

    name: str
    runner: str
    environment: str
    job: dict[str, Any]
    load: Callable[[], Reward]
    prepare: Callable[[], None] | None = field(default=None)
    published: str = ""
    std: float = max(OPENAI_CLIP_STD)

    def weights(self) -> Path:
        """The file or folder that the runner's `make` writes."""
        return Path(self.job.get("checkpoint") or self.job["folder"])


def published_config(architecture: str) -> dict[str, Any]:
    """The transformers config of an open_clip architecture, as the published folders have it."""
    config = architecture_config(architecture).to_dict()
    config["text_config"] |= {"eos_token_id": EOS, "bos_token_id": 0, "pad_token_id": 1}
    drop = {"transformers_version", "dtype", "torch_dtype"}
    return {
        key: {k: v for k, v in value.items() if k not in drop} if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in drop
    }


def convert(checkpoint: Path, architecture: str, to: Path) -> None:
    """An open_clip checkpoint's weights under transformers' names."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    converted = to_transformers(state, architecture_config(architecture))
    torch.save({key: value.float() for key, value in converted.items()}, to)


def hpsv2(work: Path) -> Case:
    checkpoint, tokenizer = str(work / "weights" / "HPS_v2_random.pt"), str(work / "tokenizers" / "clip")
    return Case(
        "HPSv2", "reference_hpsv2", "hpsv2", {"checkpoint": checkpoint}, lambda: HPSv2.load(checkpoint, tokenizer)
    )


def pickscore(work: Path) -> Case:
    folder = str(work / "weights" / "pickscore")
    job = {
        "folder": folder,
        "scaled": True,
        "tokenizer": str(work / "tokenizers" / "clip"),
        "config": published_config("ViT-H-14"),
    }
    return Case("PickScore", "reference_transformers", "image_reward", job, lambda: PickScore.load(folder))


def openai_clip(work: Path) -> Case:
    checkpoint, tokenizer = str(work / "weights" / "clip_l14.pt"), str(work / "tokenizers" / "clip")
    name = "ViT-L-14-quickgelu"
    job = {"checkpoint": checkpoint, "name": name}
    return Case(
        "CLIP L/14 (open_clip file)",
        "reference_open_clip",
        "open_clip",
        job,
        lambda: ClipScore.load(checkpoint, tokenizer, name),
    )


def clip_folder(work: Path) -> Case:
    folder, weights = str(work / "weights" / "clip_l14"), work / "weights" / "clip_l14_transformers.pt"
    name = "ViT-L-14-quickgelu"
    job = {
        "folder": folder,
        "scaled": False,
        "tokenizer": str(work / "tokenizers" / "clip"),
        "config": published_config(name),
        "weights": str(weights),
    }
    return Case(
        "CLIP L/14 (folder)",
        "reference_transformers",
        "image_reward",
        job,
        lambda: ClipScore.load(folder),
        lambda: convert(work / "weights" / "clip_l14.pt", name, weights),
    )


def aesthetic(work: Path, version: str, head: Path) -> Case:
    """LAION's real head on a CLIP with random weights."""
    folder, checkpoint = str(work / "weights" / "clip_l14"), str(work / "weights" / "clip_l14.pt")
    job = {"checkpoint": checkpoint, "name": "ViT-L-14-quickgelu", "head": str(head)}
    return Case(
        f"aesthetic {version}",
        "reference_open_clip",
        "open_clip",
        job,
        lambda: Aesthetic.load(folder, str(head)),
    )


def image_reward(work: Path) -> Case:
    checkpoint, config = str(work / "weights" / "ImageReward_random.pt"), work / "weights" / "med_config.json"
    tokenizer = str(work / "tokenizers" / "bert")
    return Case(
        "ImageReward",
        "reference_image_reward",
        "image_reward",
        {"checkpoint": checkpoint, "config": str(config), "tokenizer": tokenizer},
        lambda: ImageReward.load(checkpoint, str(config), tokenizer),
        lambda: config.write_text(json.dumps(MED, indent=2)) and None,
    )


def all_cases(work: Path, heads: Path) -> list[Case]:
    """Every scorer; those that need the weights of another after it."""
    cases = [hpsv2(work), openai_clip(work), clip_folder(work), image_reward(work), pickscore(work)]
    for version, file in (("v2", "sac+logos+ava1-l14-linearMSE.pth"), ("v1", "sa_0_4_vit_l_14_linear.pth")):
        if (heads / file).exists():
            cases.append(aesthetic(work, version, heads / file))
        else:
            print(f"{heads / file} is absent: aesthetic {version} is skipped")
    return cases
