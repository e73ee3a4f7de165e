"""Where the pictures of a data set are: in files of its folder, in shards, in tables; never elsewhere."""

from __future__ import annotations

import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from textcraftor.errors import UsageError
from textcraftor.files.reading import MOST_PICTURE, root_of


class Source(Protocol):
    """Where a picture is."""

    def read(self) -> tuple[Path, bytes | None]:
        """The picture's file; or what names it, and its bytes.

        Raises:
            OSError, ValueError: it is not there, or not in the data set's folder.
        """


@dataclass(frozen=True)
class Row:
    """A picture and what is written about it.

    Args:
        at: where the row stands, for people.
        key: its name, if no field gives one.
        fields: by their names in lower case.
        picture: None: there is none.
    """

    at: str
    key: str
    fields: dict[str, Any]
    picture: Source | None


def lowered(row: dict[str, Any]) -> dict[str, Any]:
    """Fields by their names in lower case; of names that differ in case alone the one in lower case."""
    return {name.lower(): row[name] for name in sorted(row, key=str.islower)}


@dataclass(frozen=True)
class InFile:
    """A picture's file below the data set's folder `root`."""

    root: Path
    file: Path

    def __str__(self) -> str:
        return str(self.file)

    def read(self) -> tuple[Path, None]:
        target = self.file.resolve()
        if not target.is_relative_to(root_of(self.root)):
            raise UsageError(f"{self.file} leads out of {self.root}: put the picture there")
        return target if self.file.is_symlink() else self.file, None


@dataclass(frozen=True)
class InShard:
    """A picture's bytes within a tar file."""

    shard: Path
    name: str
    start: int
    size: int

    def read(self) -> tuple[Path, bytes]:
        if self.size > MOST_PICTURE:
            raise UsageError(f"{self.name} has {self.size:,} bytes, more than {MOST_PICTURE:,}: shrink it")
        with self.shard.open("rb") as shard:
            shard.seek(self.start)
            return self.shard / self.name, shard.read(self.size)


@dataclass(frozen=True)
class InTable:
    """A picture in a row of a `datasets.Dataset` that has columns of undecoded pictures alone."""

    table: Any
    number: int
    root: Path
    folder: Path

    def read(self) -> tuple[Path, bytes | None]:
        at = f"row {self.number}"
        value = next((one for one in self.table[self.number].values() if one is not None), None)
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return self.folder / at, value
        if not isinstance(value, str):
            raise UsageError(f"{at} has no picture, but {reprlib.repr(value)}")
        return in_file(at, self.root, self.folder, value).read()


def in_file(at: str, root: Path, folder: Path, name: str) -> InFile:
    """The file that a row names, relative to its table's folder.

    Raises:
        UsageError: it is an address, or leads out of the data set's folder `root`.
    """
    if "://" in name:
        raise UsageError(
            f"{at}: {name[:80]} is an address, and pictures are not downloaded from tables: download them first, for "
            "instance with img2dataset, and give data.path= the folder that it writes"
        )
    place = Path(os.path.normpath(folder.absolute() / name))
    if not any(place.is_relative_to(base) for base in (os.path.normpath(root.absolute()), root.resolve())):
        raise UsageError(f"{at}: {name[:80]} leads out of {root}: put its pictures there and name them relative to it")
    return InFile(root, folder / name)
