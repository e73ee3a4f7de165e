"""`textcraftor score`: any scorers over a folder of pictures, one JSON line a picture."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from textcraftor.data.layouts import PICTURE_SUFFIXES
from textcraftor.data.picture_prompts import prompt_of
from textcraftor.data.prompt_files import TEXTS, every_given_row, is_given
from textcraftor.data.sources import lowered
from textcraftor.data.texts import PICTURES
from textcraftor.errors import UsageError
from textcraftor.evaluation.judging.folders import TABLE
from textcraftor.evaluation.judging.judged import Picture, ask, figures, judged, table_of, table_text
from textcraftor.evaluation.judging.opening import answers_of, check_judge, judge_of
from textcraftor.evaluation.suite import finite
from textcraftor.files.reading import open_picture
from textcraftor.files.writing import check_unfinished, finish, locked, write_json, write_text
from textcraftor.inference.pictures import to_pil
from textcraftor.models.loading import device_of, dtype_of
from textcraftor.rewards.preprocessing import from_pil
from textcraftor.rewards.total import RewardSum, check_rewards, load_rewards

MOST_RATIO = 64  # of a picture's sides: its short one is what scorers bring to some hundred pixels
Pair = tuple[Path, str]


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder, by name; hidden ones and a contact sheet are none."""
    if not folder.is_dir():
        raise UsageError(f"images={folder} is no folder: give one that holds pictures")
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in PICTURE_SUFFIXES and file.stem != "contact_sheet" and not file.name.startswith(".")
    )


@dataclass(frozen=True)
class Paired:
    """Pictures with their prompts, and those that have none."""

    pairs: list[Pair]
    without: list[Path]

    def told(self) -> str:
        """Which pictures have no prompt, in one line."""
        names = ", ".join(file.name for file in self.without[:5]) + ", …" * (len(self.without) > 5)
        whole = len(self.pairs) + len(self.without)
        return f"{len(self.without)} of {whole} pictures say no prompt and are not scored: {names}"


def pair(folder: Path, path: str | None, column: str | None = None, texts: Sequence[str] | None = None) -> Paired:
    """Each picture with its prompt: by a table that names the pictures, by the order of names and lines, or as the
    picture or the text file beside it says.

    Args:
        path, column, texts: as in a configuration's `prompts`.
    """
    files, given = pictures_in(folder), {"path": path, "column": column, "texts": texts}
    place = TEXTS if texts is not None else str(path)
    rows = [lowered(row) for row in every_given_row(given)]
    if any(name in row for name in PICTURES for row in rows):
        pairs = [_named(folder, row, f"{place}, row {number}") for number, row in enumerate(rows, 1)]
        named = {file for file, _ in pairs}
        return Paired(pairs, [file for file in files if file not in named])
    if not files:
        raise UsageError(f"images={folder} holds no picture ({', '.join(PICTURE_SUFFIXES)})")
    if not is_given(given):
        prompts = {file: prompt_of(file) for file in files}
        pairs = [(file, prompt) for file, prompt in prompts.items() if prompt]
        if not pairs:
            raise UsageError(f"images={folder}: no picture says its prompt: give prompts.path=")
        return Paired(pairs, [file for file, prompt in prompts.items() if not prompt])
    lines = [row["prompt"] for row in rows if row["prompt"]]
    remedy = 'JSON lines {"image": ..., "prompt": ...}'
    if len(files) != len(lines):
        raise UsageError(
            f"{len(lines)} prompts in {place} for {len(files)} pictures in {folder}: give one line each in the order "
            f"of the file names, or {remedy}"
        )
    if (by_number := sorted(files, key=_by_number)) != files:
        one, other = next(pair for pair in zip(files, by_number, strict=True) if pair[0] != pair[1])
        raise UsageError(
            f"the order of the pictures in {folder} is not clear: by its letters {one.name} comes where by its numbers "
            f"{other.name} does: fill the numbers up with zeros, or give {remedy}"
        )
    return Paired(list(zip(files, lines, strict=True)), [])


def _by_number(file: Path) -> list[tuple[int, str]]:
    """Sorts 2.png before 10.png."""
    return [(int(part or 0), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", file.name)]


def _named(folder: Path, row: Mapping[str, Any], place: str) -> Pair:
    """The picture that a row names, and its prompt."""
    name = next((row[name] for name in PICTURES if row.get(name)), None)
    if not isinstance(name, str) or not row["prompt"]:
        raise UsageError(
            f"{place} must name a picture and its prompt, as {{'image': 'a.png', 'prompt': 'a red circle'}}"
        )
    if not (folder / name).is_file():
        raise UsageError(f"{place}: {folder / name} does not exist")
    return folder / name, row["prompt"]


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
    """One row for each picture: its name, prompt, scores, the scorers' other measures, and the weighted total."""
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
                without_nan = {name: None if np.isnan(each[index]) else each[index] for name, each in values.items()}
                rows[place] = {"image": file.name, "prompt": prompt, **without_nan}
        yield from (rows[place] for place in sorted(rows))


def check(config: DictConfig, folder: Path) -> Paired:
    """The pictures with their prompts; refuses bad input before a scorer is loaded or anything is written."""
    if config.images is None:
        raise UsageError("images is needed: give a folder of pictures, images=FOLDER")
    paired = pair(Path(config.images).expanduser(), config.prompts.path, config.prompts.column, config.prompts.texts)
    if config.strict and paired.without:
        raise UsageError(f"strict=true: {paired.told()}: give prompts.path=, or leave strict out")
    check_rewards(config)
    check_judge(config, folder, [prompt for _, prompt in paired.pairs], compares=False)
    dtype_of(config, "scorer_dtype")
    check_unfinished(folder, "scores")
    return paired


def judge_pictures(config: DictConfig, pairs: Sequence[Pair], folder: Path) -> tuple[list[dict], dict[str, Any]]:
    """A judge's figures of each picture, and its table by category; answers are written after each batch."""
    judge, answers = judge_of(config), answers_of(config, folder)
    pictures = [Picture(file.name, prompt, partial(opened, file)) for file, prompt in pairs]
    ask(judge, pictures, answers, config.batch_size)
    judgements = judged(judge, pictures, answers)
    assert judgements is not None  # all have been asked for
    answers.finish([key for one in judgements for key in one.keys])
    summary = {"name": judge.name, "tables": {"here": table_of(judge, judgements)}}
    return [finite(row) for row in figures(judge, judgements)], summary


def opened(file: Path) -> Image.Image:
    """A picture file in RGB."""
    return to_pil(load_picture(file))


def run(config: DictConfig, folder: Path) -> None:
    """Write `scores.jsonl`, one line a picture, and print each score's mean."""
    paired = check(config, folder)
    pairs, device = paired.pairs, device_of(config.device)
    if paired.without:
        print(paired.told())
    rewards = load_rewards(config.rewards).to(device)
    rewards.scorers.to(dtype_of(config, "scorer_dtype")[0])
    rewards.check([prompt for _, prompt in pairs])
    bar = tqdm(score(rewards, pairs, device, config.batch_size), total=len(pairs), desc="scoring", unit="picture")
    rows = list(bar)
    del rewards  # before a judge's model needs the memory
    with locked(folder):
        table: dict[str, Any] = {}
        if config.judge is not None:
            more, table = judge_pictures(config, pairs, folder)
            rows = [{**row, **one} for row, one in zip(rows, more, strict=True)]
            write_json(folder / TABLE, table)
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        write_text(folder / "scores.jsonl", "\n".join(lines) + "\n")
        finish(folder, "score")
    for name in (key for key in rows[0] if key not in ("image", "prompt")):
        known = [row[name] for row in rows if row[name] is not None]
        if known:
            print(f"{name}: {np.mean(known):.4f}")
    if table:
        print(f"\n{table_text(table)}")
