"""The pictures of several models by prompt and seed, as `generate` and `evaluate` write them, for people to look at."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from textcraftor.assets import sha256_of
from textcraftor.config.fields import MOST_SEED
from textcraftor.errors import UsageError
from textcraftor.evaluation.suite import PICTURES, ROWS, read_rows_of
from textcraftor.files.reading import (
    MOST_PICTURE,
    check_confined,
    check_file,
    is_writable,
    json_object,
    read_text,
    shaped,
)

METADATA = "metadata.jsonl"
LEAST_PICTURES = 2
Key = tuple[str, int]  # prompt and seed
Row = tuple[Key, str]


@dataclass(frozen=True)
class PictureSet:
    """The pictures of one model.

    Args:
        files: by prompt and seed.
        fingerprint: of every prompt, seed and picture, so that ratings of one set are not taken for those of another.
    """

    files: Mapping[Key, Path]
    fingerprint: str

    @classmethod
    def read(cls, name: str, folder: Path) -> PictureSet:
        """The pictures of a folder that `generate` or `evaluate` wrote.

        Args:
            name: the model's.

        Raises:
            UsageError: no such folder, fewer than two pictures, two of one prompt and seed, a seed that is none, a
                picture that is missing.
        """
        files: dict[Key, Path] = {}
        for key, written in _rows(name, folder):
            file = folder / written
            if not 0 <= key[1] <= MOST_SEED:
                raise UsageError(
                    f"models.{name}={folder}: seed={key[1]} of {file.name} must lie between 0 and {MOST_SEED}"
                )
            if files.setdefault(key, file) != file:
                raise UsageError(
                    f"models.{name}={folder}: {files[key].name} and {file.name} show the same prompt with the same "
                    "seed, as a grid's do: give a folder with one picture of each"
                )
        if len(files) < LEAST_PICTURES:
            count = "no picture" if not files else "one picture only"
            raise UsageError(f"models.{name}={folder} holds {count}: give a folder with pictures of several prompts")
        return cls(files, _fingerprint(files))


def _rows(name: str, folder: Path) -> Iterator[Row]:
    """What a folder says of its pictures: prompt and seed, and the file's path within it."""
    if not folder.is_dir():
        raise UsageError(f"models.{name}={folder} is no folder: give one that generate or evaluate wrote")
    check_confined(folder)
    if (folder / ROWS).exists():
        rows = ((row, f"{PICTURES}/{_base_name(folder / ROWS, row.get('picture'))}") for row in read_rows_of(folder))
        yield from (((row["prompt"], row["seed"]), path) for row, path in rows)
    elif (folder / METADATA).exists():
        yield from _metadata(folder / METADATA)
    else:
        raise UsageError(
            f"models.{name}={folder} holds neither {METADATA} nor {ROWS}: give a folder that generate or evaluate wrote"
        )


def _metadata(file: Path) -> Iterator[Row]:
    """The rows of `generate`."""
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            place = f"{file}, line {number}"
            row = shaped(place, json_object(place, line), {"file_name": str, "caption": str, "seed": int})
            if not is_writable(row["caption"]):
                raise UsageError(f"{place}: the caption holds half a sign: write it again")
            yield (row["caption"], row["seed"]), _base_name(place, row["file_name"])


def _base_name(place: object, name: object) -> str:
    """The name of a picture within its folder; nothing outside is read."""
    base = Path(str(name)).name
    if not base or "\0" in base:
        raise UsageError(f"{place}: {name} names no picture")
    return base


def _fingerprint(files: Mapping[Key, Path]) -> str:
    """SHA-256 of the prompts, the seeds and the pictures' bytes, whatever their order and names."""
    whole = hashlib.sha256()
    for (prompt, seed), file in sorted(files.items()):
        picture = sha256_of(check_file(file, MOST_PICTURE))
        whole.update(f"{hashlib.sha256(prompt.encode()).hexdigest()} {seed} {picture}\n".encode())
    return whole.hexdigest()


def read_sets(folders: Mapping[str, str]) -> dict[str, PictureSet]:
    """The pictures of each model, by its name.

    Raises:
        UsageError: what `PictureSet.read` refuses, or two models with the same pictures.
    """
    sets = {name: PictureSet.read(name, Path(folder).expanduser()) for name, folder in folders.items()}
    for (one, first), (other, second) in itertools.combinations(sets.items(), 2):
        if first.fingerprint == second.fingerprint:
            raise UsageError(f"models.{one} and models.{other} hold the same pictures: give each model's own folder")
    return sets
