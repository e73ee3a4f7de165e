"""Golden figures: what the published packages make of the toy-size scorers of `parity.tiny`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from parity import environments, folders, pictures, tiny
from parity.cases import Case
from textcraftor.rewards.aesthetic import Aesthetic
from textcraftor.rewards.clip import ClipScore, PickScore
from textcraftor.rewards.hpsv2 import HPSv2
from textcraftor.rewards.hpsv3 import HPSv3
from textcraftor.rewards.image_reward import ImageReward
from textcraftor.rewards.mps import MPS
from textcraftor.rewards.open_clip import to_transformers

CONDITION = "red, blue star."
THRESHOLD = 0.3  # of the published script


def write_files(folder: Path) -> None:
    """Everything that our loaders read: checkpoints, configs, tokenizers and two CLIP folders."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": tiny.open_clip_state()}, folder / "open_clip.pt")
    torch.save(tiny.image_reward_state(), folder / "image_reward.pt")
    torch.save(tiny.head_state(tiny.EMBED), folder / "head_v2.pth")
    torch.save(tiny.linear_head_state(), folder / "head_v1.pth")
    (folder / "med_config.json").write_text(json.dumps(tiny.med_config()))
    tiny.write_bert_tokenizer(folder / "bert")
    tiny.write_bpe(folder / "bpe.txt.gz")
    environments.clip_tokenizer(folder / "bpe.txt.gz", folder / "clip_tokenizer", tiny.CONTEXT)
    for name, quick_gelu in (("gelu", False), ("quick_gelu", True)):
        config = tiny.clip_config(quick_gelu)
        (folder / f"{name}.json").write_text(json.dumps(config))
        clip = CLIPModel(CLIPConfig.from_dict(config))
        clip.load_state_dict(to_transformers(tiny.open_clip_state(), clip.config))
        clip.save_pretrained(folder / f"clip_{name}")
        CLIPTokenizer.from_pretrained(folder / "clip_tokenizer").save_pretrained(folder / f"clip_{name}")
    folders.write_siglip(folder / "siglip")
    folders.write_v25_head(folder / "head_v25.pth")
    folders.write_mps(folder / "mps.safetensors")
    folders.write_hpsv3(folder / "hpsv3")


def cases(folder: Path, mps_source: str = "") -> list[Case]:
    """Every scorer at toy size.

    Args:
        mps_source: a clone of Kwai-Kolors/MPS, for its reference runner.
    """
    paths = {name: str(folder / name) for name in ("open_clip.pt", "bpe.txt.gz", "clip_tokenizer", "bert")}
    checkpoint, tokenizer = paths["open_clip.pt"], paths["clip_tokenizer"]
    gelu = {"checkpoint": checkpoint, "bpe": paths["bpe.txt.gz"], "architecture": tiny.open_clip_architecture(False)}
    quick = gelu | {"architecture": tiny.open_clip_architecture(True)}
    blip = {
        name: str(folder / file) for name, file in (("checkpoint", "image_reward.pt"), ("config", "med_config.json"))
    }
    blip["tokenizer"] = paths["bert"]
    pick = {"folder": str(folder / "theirs"), "scaled": True, "config": tiny.clip_config(False)}
    pick |= {"tokenizer": tokenizer, "weights": str(folder / "weights.pt")}
    heads = {version: str(folder / f"head_{version}.pth") for version in ("v1", "v2")}
    clip_folder, json_file = str(folder / "clip_quick_gelu"), str(folder / "{}.json")
    found = [
        Case("HPSv2", "reference_hpsv2", "hpsv2", gelu,
             lambda: HPSv2.load(checkpoint, tokenizer, json_file.format("gelu"))),
        Case("ClipScore", "reference_open_clip", "open_clip", quick,
             lambda: ClipScore.load(checkpoint, tokenizer, json_file.format("quick_gelu"))),
        Case("PickScore", "reference_transformers", "image_reward", pick,
             lambda: PickScore.load(str(folder / "clip_gelu"))),
        Case("ImageReward", "reference_image_reward", "image_reward", blip | {"sizes": tiny.blip_sizes()},
             lambda: ImageReward.load(**blip)),
    ]  # fmt: skip
    for version, head in heads.items():
        job = quick | {"head": head}
        load = lambda head=head: Aesthetic.load(clip_folder, head)  # noqa: E731
        found.append(Case(f"Aesthetic {version}", "reference_open_clip", "open_clip", job, load))
    return [*found, *further_cases(folder, tokenizer, mps_source)]


def further_cases(folder: Path, tokenizer: str, mps_source: str) -> list[Case]:
    """Those on SigLIP, MPS and HPSv3."""
    siglip, head, hpsv3 = str(folder / "siglip"), str(folder / "head_v25.pth"), str(folder / "hpsv3")
    checkpoint, config = str(folder / "mps.safetensors"), str(folder / "mps.json")
    mps = {"checkpoint": checkpoint, "config": config, "tokenizer": tokenizer, "condition": CONDITION}
    return [
        Case("SigLIP", "reference_siglip", "siglip", {"folder": siglip}, lambda: ClipScore.load(siglip),
             published="transformers 4.55.4", std=0.5),
        Case("Aesthetic v2.5", "reference_siglip", "siglip", {"folder": siglip, "head": head},
             lambda: Aesthetic.load(siglip, head), published="aesthetic-predictor-v2-5 2024.12.18.1", std=0.5),
        Case("MPS", "reference_mps", "hpsv3", mps | {"source": mps_source},
             lambda: MPS.load(checkpoint, tokenizer, CONDITION, THRESHOLD, config),
             published="Kwai-Kolors/MPS be9027f"),
        Case("HPSv3", "reference_hpsv3", "hpsv3", {"folder": hpsv3},
             lambda: HPSv3.load(f"{hpsv3}/HPSv3.safetensors", hpsv3), published="hpsv3 1.0.0"),
    ]  # fmt: skip


def prepare(folder: Path) -> dict:
    """Write all files; the job."""
    write_files(folder)
    config = CLIPConfig.from_dict(tiny.clip_config(False))
    torch.save(to_transformers(tiny.open_clip_state(), config), folder / "weights.pt")
    drawn = pictures.write(folder / "pictures", [Image.fromarray(picture) for picture in tiny.pictures()])
    return {"pictures": drawn, "prompts": list(tiny.PROMPTS), "token_prompts": list(tiny.TOKEN_PROMPTS)}


def figures(theirs: Mapping[str, np.ndarray]) -> dict[str, list]:
    """What the tests compare with: a few pixels, the scores, all tokens."""
    found: dict[str, list] = {
        "pixels": [round(float(value), 6) for value in tiny.sample(theirs["own_pixels"])],
        "scores": [float(f"{value:.8g}") for value in theirs["own_score"]],
        "gradients": [float(f"{value:.6g}") for value in tiny.sample(theirs["gradients"], 12)],
    }
    return found | {key: value.tolist() for key, value in theirs.items() if key.startswith("tokens_")}


def write(file: Path, answers: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """`golden.json`: one line per list, so that a change is readable. Scorers without new answers are kept."""
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    lines = []
    for name, own in (kept | {name: figures(theirs) for name, theirs in answers.items()}).items():
        rows = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in own.items()]
        lines.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(rows) + "\n  }")
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"wrote {file}")
