"""`textcraftor recaption`: a further caption for every picture of a data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm.auto import tqdm

from textcraftor.config.making import made
from textcraftor.data.records import Records, check_records
from textcraftor.errors import UsageError
from textcraftor.files import writing
from textcraftor.files.reading import read_json, read_json_lines
from textcraftor.files.writing import append, check_unfinished, locked, write_json, write_text
from textcraftor.models.loading import device_of

Captioner = Callable[[Sequence[Image.Image]], list[str]]
FILE = "captions.jsonl"


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot work before any model is loaded."""
    check_records(config.data.path)
    if config.captioner.path is None:
        raise UsageError("captioner.path is needed: give the folder that train-captioner wrote, or captioner=blip")
    if not str(config.style).strip():
        raise UsageError("style='' names no kind of caption: short and descriptive are usual")
    device_of(config.device)
    check_unfinished(folder, "captions")


def run(config: DictConfig, folder: Path) -> str:
    """Write `captions.jsonl`: key, kind, text, model and prompt of each picture; what an interrupted run wrote stays.

    Pictures that cannot be read and captions that come out empty are counted and named in `skipped.json`.
    """
    check(config, folder)
    records, processes = Records.read(config.data.path, split=config.data.split), PartialState()
    captioner = made(config.captioner, device=device_of(config.device))
    with locked(folder, str(processes.process_index)):
        make(config, folder, records, captioner)
        processes.wait_for_everyone()
        return finish(config, folder, records) if processes.is_main_process else "captioned"


def make(config: DictConfig, folder: Path, records: Records, captioner: Any) -> None:
    """Caption this process's share of the pictures without a caption."""
    processes = PartialState()
    done = {row["key"] for row in written(folder)}
    waiting = [index for index in range(len(records)) if records.records[index].key not in done]
    mine = waiting[processes.process_index :: processes.num_processes]
    origin = {"kind": config.style, "model": captioner.name, "prompt": captioner.prompt}
    skipped: dict[str, str] = {}
    for start in tqdm(range(0, len(mine), config.batch_size), desc="captioning", unit="batch"):
        rows = captions_of(captioner, records, mine[start : start + config.batch_size], skipped)
        lines = ["\n" + json.dumps({**row, **origin}, ensure_ascii=False) for row in rows]
        append(folder / f"captions.{processes.process_index}.part", "".join(lines))
    write_json(folder / f"skipped.{processes.process_index}.part", skipped)


def captions_of(
    captioner: Captioner, records: Records, indices: Sequence[int], skipped: dict[str, str]
) -> list[dict[str, Any]]:
    """Key and caption of some pictures; those left out go to `skipped`, with the reason."""
    pictures: dict[str, Image.Image] = {}
    for index in indices:
        key = records.records[index].key
        try:
            pictures[key] = records.picture(index)
        except OSError as error:
            skipped[key] = f"its picture cannot be read ({error})"
    texts = captioner(list(pictures.values())) if pictures else []
    captions = dict(zip(pictures, texts, strict=True))
    skipped |= {key: "the captioner said nothing" for key, text in captions.items() if not text}
    return [{"key": key, "text": text} for key, text in captions.items() if text]


def written(folder: Path) -> list[dict[str, Any]]:
    """The rows of all processes so far."""
    rows = [row for file in sorted(folder.glob("captions.*.part")) for row in read_json_lines(file)]
    return [row for row in rows if isinstance(row.get("key"), str)]


def finish(config: DictConfig, folder: Path, records: Records) -> str:
    """Merge the captions into one file, in the data set's order; returns a summary to print."""
    rows = {row["key"]: row for row in written(folder)}
    skipped = dict(records.skipped)
    for file in folder.glob("skipped.*.part"):
        skipped |= read_json(file)
    if not rows:
        raise UsageError(f"no picture of {config.data.path} got a caption: {next(iter(skipped.items()))}")
    lines = [json.dumps(rows[one.key], ensure_ascii=False) + "\n" for one in records.records if one.key in rows]
    write_text(folder / FILE, "".join(lines))
    write_json(folder / "skipped.json", skipped)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    writing.finish(folder, "recaption")
    for file in folder.glob("*.part"):
        file.unlink()
    return f"wrote {folder / FILE}: {len(rows)} {config.style} captions, {len(skipped)} skipped"
