"""Which files make up a data set of captioned pictures, and which split each belongs to."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from textcraftor.errors import UsageError
from textcraftor.files.reading import read_json, shaped

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CAPTION_SUFFIXES = (".txt", ".caption")
TABLE_SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv")
WHERE = (
    "give a folder of pictures with a .txt beside each or with metadata.jsonl, .csv, .tsv or .parquet, of webdataset "
    ".tar shards, or of datasets"
)
SPLITS = {  # the words by which the hub knows splits
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF_WORD = {word: split for split, words in SPLITS.items() for word in words}
SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")  # <split>-00000-of-00002, as the hub names them


@dataclass(frozen=True)
class Layout:
    """The files of one split.

    Args:
        folder: the data set's; nothing outside it is read.
        kind: `saved` (by `datasets`), `pairs` (pictures with texts beside them), or the suffix of every file.
        files: in order; of pairs the pictures and texts, of `saved` the folder.
        unread: what else lies there, for people.
    """

    folder: Path
    kind: str
    files: list[Path]
    unread: list[str]


def layout_of(path: str | Path, split: str) -> Layout:
    """The layout of what `data.path` names.

    Raises:
        UsageError: it holds no data set, or not this split.
    """
    place = Path(path).expanduser()
    if place.is_file():
        if place.suffix.lower() not in (".tar", *TABLE_SUFFIXES):
            raise UsageError(f"data.path={path} holds no table: {WHERE}")
        return Layout(place.parent, place.suffix.lower(), [place], [])
    if (place / "state.json").exists():
        return Layout(place, "saved", [place], [])
    if (place / "dataset_dict.json").exists():
        named = shaped(place / "dataset_dict.json", read_json(place / "dataset_dict.json"), {"splits": [str]})["splits"]
        chosen, others = _chosen(path, split, {name: [place / name] for name in named})
        return Layout(place, "saved", chosen, others)
    files, links = _files(place)
    kind, chosen, ignored = _kind(path, place, files)
    splits: dict[str, list[Path]] = {}
    for file in chosen:
        splits.setdefault(_split_of(file.relative_to(place), kind), []).append(file)
    unnamed = splits.pop("", [])
    if unnamed and "train" in splits:
        ignored = [*(str(file.relative_to(place)) for file in unnamed), *ignored]
    elif unnamed:
        splits["train"] = unnamed
    chosen, others = _chosen(path, split, splits)
    return Layout(place, kind, chosen, [*others, *ignored, *links])


def _files(place: Path) -> tuple[list[Path], list[str]]:
    """Every file below a folder, by name, hidden ones left out; and the links to folders, which are not followed."""
    files, links = list[Path](), list[str]()
    for parent, folders, names in os.walk(place):
        at = Path(parent)
        links += [f"{(at / name).relative_to(place)} (a link)" for name in folders if (at / name).is_symlink()]
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        files += [at / name for name in sorted(names) if not name.startswith(".")]
    return files, links


def _kind(path: str | Path, place: Path, files: list[Path]) -> tuple[str, list[Path], list[str]]:
    """The kind of data set, its files, and the tables and shards beside them that are not read."""
    shards = [file for file in files if file.suffix.lower() == ".tar"]
    tables = [file for file in files if file.suffix.lower() in TABLE_SUFFIXES]
    named = [file for file in tables if "metadata" in file.stem.lower()]
    named = [file for file in named if file.parent == place] or named
    captioned = {file.with_suffix("") for file in files if file.suffix.lower() in CAPTION_SUFFIXES}
    pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
    if shards:
        kind, chosen = ".tar", shards
    elif named:
        kind, chosen = _of_first_suffix(named)
    elif any(picture.with_suffix("") in captioned for picture in pictures):
        kind = "pairs"
        chosen = [file for file in files if file.suffix.lower() in (*PICTURE_SUFFIXES, *CAPTION_SUFFIXES)]
    elif tables:
        kind, chosen = _of_first_suffix(tables)
    elif pictures:
        raise UsageError(f"data.path={path} holds no table and no captions beside its pictures: {WHERE}")
    else:
        raise UsageError(f"data.path={path} holds no table: {WHERE}")
    taken = set(chosen)
    ignored = [str(file.relative_to(place)) for file in (*shards, *tables) if file not in taken]
    beside = sum(picture.with_suffix("") in captioned for picture in pictures) if kind != "pairs" else 0
    return kind, chosen, [*ignored, *([f"the texts beside {beside} pictures"] if beside else [])]


def _of_first_suffix(tables: list[Path]) -> tuple[str, list[Path]]:
    def of(suffix: str) -> list[Path]:
        return [file for file in tables if file.suffix.lower() == suffix]

    suffix = next(suffix for suffix in TABLE_SUFFIXES if of(suffix))
    return suffix, of(suffix)


def _split_of(file: Path, kind: str) -> str:
    """The split that a file's folders or a table's or shard's own name say; empty if they say none."""
    for folder in file.parts[:-1]:
        if split := SPLIT_OF_WORD.get(folder.lower()):
            return split
    if kind == "pairs":
        return ""
    if sharded := SHARD.match(file.name):
        name = sharded[1].lower()
        return SPLIT_OF_WORD.get(name, name)
    words = re.split(r"[^a-z]+", file.stem.lower())
    return next((SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD), "")


def _chosen(path: str | Path, split: str, splits: dict[str, list[Path]]) -> tuple[list[Path], list[str]]:
    """The files of a split, and the other splits."""

    def same(name: str) -> str:
        return SPLIT_OF_WORD.get(name.lower(), name.lower())

    wanted = next((name for name in splits if same(name) == same(split)), None)
    if wanted is None:
        there = ", ".join(sorted(splits))
        raise UsageError(f"data.split={split}: data.path={path} has the splits {there}: choose one, data.split=...")
    return splits[wanted], [f"the split {name}" for name in sorted(splits) if name != wanted]
