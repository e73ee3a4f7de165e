"""The rows of webdataset shards: tar files whose members share a name up to its first dot."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from textcraftor.data.fields import is_caption
from textcraftor.data.layouts import CAPTION_SUFFIXES, PICTURE_SUFFIXES
from textcraftor.data.sources import InShard, Row, lowered
from textcraftor.errors import UsageError, one_line
from textcraftor.files.reading import MB, MOST_TABLE, check_file, parse_json
from textcraftor.files.texts import text_of


@dataclass
class _Members:
    """What a shard holds under one name."""

    fields: dict[str, Any] = field(default_factory=dict)
    written: dict[str, Any] = field(default_factory=dict)
    picture: InShard | None = None


def rows_of_shard(shard: Path) -> Iterator[Row]:
    """A shard's rows; pictures stay in it.

    Raises:
        UsageError: it is damaged or cut short.
    """
    rows: dict[str, _Members] = {}
    check_file(shard, MOST_TABLE)
    try:
        with tarfile.open(shard, "r:") as members:
            for member in members:
                path = PurePosixPath(member.name)
                stem, _, ending = path.name.partition(".")
                if member.isreg() and not member.issparse() and stem:
                    row = rows.setdefault(str(path.parent / stem), _Members())
                    _add(row, shard, members, member, ending.lower())
            _check_end(shard, members)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(f"{shard} is damaged ({one_line(error)}): copy or download it again") from error
    for key, row in rows.items():
        yield Row(f"{shard}: {key}", key, {**row.fields, **row.written, "__key__": key}, row.picture)


def _add(row: _Members, shard: Path, members: tarfile.TarFile, member: tarfile.TarInfo, ending: str) -> None:
    at = shard / member.name
    if f".{ending.rpartition('.')[2]}" in PICTURE_SUFFIXES:
        row.picture = row.picture or InShard(shard, member.name, member.offset_data, member.size)
    elif ending == "json":
        fields = parse_json(at, _text(at, members, member))
        if not isinstance(fields, dict):
            raise UsageError(f"{at} must hold a JSON object with keys")
        row.fields = lowered(fields)
    elif is_caption(ending) or f".{ending}" in CAPTION_SUFFIXES:
        row.written[ending] = _text(at, members, member)


def _text(at: Path, members: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    if member.size > MB:
        raise UsageError(f"{at} has {member.size:,} bytes, more than the {MB:,} of a text: shorten it")
    stream = members.extractfile(member)
    return text_of(stream.read(), at) if stream else ""


def _check_end(shard: Path, members: tarfile.TarFile) -> None:
    """Refuse a shard whose members are followed by anything else; tarfile ignores it."""
    with shard.open("rb") as stream:
        stream.seek(members.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("no member where one should begin")
