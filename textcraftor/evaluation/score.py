"""`textcraftor score`: any scorers over a folder of pictures, one JSON line a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from textcraftor.data.prompts import read_prompts
from textcraftor.errors import UsageError
from textcraftor.files.reading import open_picture, read_text
from textcraftor.files.writing import check_unfinished, finish, locked, write_text
from textcraftor.models.loading import device_of, dtype_of
from textcraftor.rewards.preprocessing import from_pil
from textcraftor.rewards.total import RewardSum, check_rewards, load_rewards

MOST_RATIO = 64  # of a picture's sides: its short one is what scorers bring to some hundred pixels
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
Pair = tuple[Path, str]


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder, by name; a contact sheet is none."""
    if not folder.is_dir():
        raise UsageError(f"images={folder} is no folder: give one that holds pictures")
    files = sorted(
        file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.stem != "contact_sheet"
    )
    if not files:
        raise UsageError(f"images={folder} holds no picture ({', '.join(sorted(SUFFIXES))})")
    return files


def pair(folder: Path, prompts: str | None) -> list[Pair]:
    """Each picture with its prompt: by JSON lines, by the order of names and lines, or as its PNG says."""
    if prompts is None:
        return [(file, prompt_in(file)) for file in pictures_in(folder)]
    if Path(prompts).suffix == ".jsonl":
        return [(folder / row["image"], row["prompt"]) for row in read_rows(Path(prompts), folder)]
    files, lines = pictures_in(folder), read_prompts(prompts)
    if len(files) != len(lines):
        raise UsageError(
            f"{len(lines)} prompts in {prompts} for {len(files)} pictures in {folder}: give one line each in the order "
            'of the file names, or JSON lines {"image": ..., "prompt": ...}'
        )
    return list(zip(files, lines, strict=True))


def prompt_in(file: Path) -> str:
    """The prompt in a PNG's metadata."""
    with open_picture(file) as picture:
        prompt = getattr(picture, "text", {}).get("prompt", "")
    if not prompt.strip():
        raise UsageError(f"{file} says no prompt in its metadata: give prompts.path=")
    return prompt


def read_rows(file: Path, folder: Path) -> Iterator[dict[str, str]]:
    """The rows of a JSON-lines file, checked."""
    if not file.is_file():
        raise UsageError(f"prompts.path={file} does not exist")
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image, prompt = row["image"], row["prompt"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UsageError(f'{file}:{number}: expected {{"image": ..., "prompt": ...}}, found {line[:60]}') from error
        if not isinstance(prompt, str) or not prompt.strip():
            raise UsageError(f"{file}:{number}: prompt {prompt!r} is no text")
        if not (folder / image).is_file():
            raise UsageError(f"{file}:{number}: {folder / image} does not exist")
        yield row


def load_picture(file: Path) -> Tensor:
    """A picture file as float (3, height, width) in [0, 1]."""
    with open_picture(file) as picture:
        if max(picture.size) > MOST_RATIO * min(picture.size):
            raise UsageError(
                f"{file} has {picture.width} x {picture.height} pixels, a strip that scorers cannot see: crop it"
            )
        try:
            return from_pil(picture)
        except (OSError, SyntaxError, ValueError) as error:
            raise UsageError(f"{file} is damaged ({error}): mend it or take it out of the folder") from error


@torch.no_grad()
def score(rewards: RewardSum, pairs: list[Pair], device: str = "cpu", batch_size: int = 16) -> Iterator[dict]:
    """One row for each picture: its name, prompt, every score, what scorers measure beside, and the weighted total."""
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        loaded = [load_picture(file) for file, _ in batch]
        rows: dict[int, dict] = {}
        for size in dict.fromkeys(picture.shape for picture in loaded):
            places = [place for place, picture in enumerate(loaded) if picture.shape == size]
            images, prompts = torch.stack([loaded[i] for i in places]).to(device), [batch[i][1] for i in places]
            scores = rewards(images, prompts)
            figures = {**scores, **rewards.measure(images, prompts), "total": rewards.total(scores)}
            values = {name: score.float().tolist() for name, score in figures.items()}
            for index, place in enumerate(places):
                file, prompt = batch[place]
                found = {name: None if np.isnan(each[index]) else each[index] for name, each in values.items()}
                rows[place] = {"image": file.name, "prompt": prompt, **found}
        yield from (rows[place] for place in sorted(rows))


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot work before any scorer is loaded and before anything is written."""
    if config.images is None:
        raise UsageError("images is needed: give a folder of pictures, images=FOLDER")
    pair(Path(config.images).expanduser(), config.prompts.path)
    check_rewards(config.rewards)
    dtype_of(config, "scorer_dtype")
    check_unfinished(folder, "scores")


def run(config: DictConfig, folder: Path) -> None:
    """Write `scores.jsonl`, one line a picture, and print each score's mean."""
    check(config, folder)
    pairs, device = pair(Path(config.images).expanduser(), config.prompts.path), device_of(config.device)
    rewards = load_rewards(config.rewards).to(device)
    rewards.scorers.to(dtype_of(config, "scorer_dtype")[0])
    rewards.check([prompt for _, prompt in pairs])
    bar = tqdm(score(rewards, pairs, device, config.batch_size), total=len(pairs), desc="scoring", unit="picture")
    rows = list(bar)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    with locked(folder):
        write_text(folder / "scores.jsonl", "\n".join(lines) + "\n")
        finish(folder, "score")
    for name in (key for key in rows[0] if key not in ("image", "prompt")):
        known = [row[name] for row in rows if row[name] is not None]
        if known:
            print(f"{name}: {np.mean(known):.4f}")
