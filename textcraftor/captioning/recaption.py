"""`textcraftor recaption`: a further caption for every picture of a data set."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from textcraftor.data.records import Records, check_records
from textcraftor.errors import UsageError
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
    if (folder / FILE).exists():
        raise UsageError(f"run_dir={folder} holds finished captions: choose another run_dir= or name=, or delete it")


def run(config: DictConfig, folder: Path) -> str:
    """Write `captions.jsonl`: key, kind, text, model and prompt of each picture; what an interrupted run wrote stays.

    Pictures that cannot be read and captions that come out empty are counted and named in `skipped.json`.
    """
    check(config, folder)
    records, processes = Records.read(config.data.path), PartialState()
    captioner = instantiate(config.captioner, device=device_of(config.device))
    folder.mkdir(parents=True, exist_ok=True)
    done = {row["key"] for row in written(folder)}
    waiting = [index for index in range(len(records)) if records.records[index].key not in done]
    mine = waiting[processes.process_index :: processes.num_processes]
    told = {"kind": config.style, "model": captioner.name, "prompt": captioner.prompt}
    skipped: dict[str, str] = {}
    with (folder / f"captions.{processes.process_index}.part").open("a", encoding="utf-8") as file:
        for start in tqdm(range(0, len(mine), config.batch_size), desc="captioning", unit="batch"):
            for row in captions_of(captioner, records, mine[start : start + config.batch_size], skipped):
                file.write("\n" + json.dumps({**row, **told}, ensure_ascii=False))
            file.flush()
    (folder / f"skipped.{processes.process_index}.part").write_text(json.dumps(skipped))
    processes.wait_for_everyone()
    return finish(config, folder, records) if processes.is_main_process else "captioned"


def captions_of(
    captioner: Captioner, records: Records, indices: Sequence[int], skipped: dict[str, str]
) -> list[dict[str, Any]]:
    """Key and caption of some pictures; what is left out, and why, goes to `skipped`."""
    pictures: dict[str, Image.Image] = {}
    for index in indices:
        key = records.records[index].key
        try:
            pictures[key] = records.picture(index)
        except OSError as error:
            skipped[key] = f"its picture cannot be read ({error})"
    texts = captioner(list(pictures.values())) if pictures else []
    found = dict(zip(pictures, texts, strict=True))
    skipped |= {key: "the captioner said nothing" for key, text in found.items() if not text}
    return [{"key": key, "text": text} for key, text in found.items() if text]


def written(folder: Path) -> list[dict[str, Any]]:
    """The rows of all processes so far; a line that an interruption cut short is no row."""
    found = []
    for file in sorted(folder.glob("captions.*.part")):
        for line in file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
    return found


def finish(config: DictConfig, folder: Path, records: Records) -> str:
    """One file, in the data set's order; returns what is to be said."""
    rows = {row["key"]: row for row in written(folder)}
    skipped = dict(records.skipped)
    for file in folder.glob("skipped.*.part"):
        skipped |= json.loads(file.read_text())
    if not rows:
        raise UsageError(f"no picture of {config.data.path} got a caption: {next(iter(skipped.items()))}")
    lines = [json.dumps(rows[one.key], ensure_ascii=False) + "\n" for one in records.records if one.key in rows]
    (folder / FILE).write_text("".join(lines), encoding="utf-8")
    (folder / "skipped.json").write_text(json.dumps(skipped, indent=2, ensure_ascii=False))
    OmegaConf.save(config, folder / "config.yaml", resolve=True)
    for file in folder.glob("*.part"):
        file.unlink()
    return f"wrote {folder / FILE}: {len(rows)} {config.style} captions, {len(skipped)} skipped"
