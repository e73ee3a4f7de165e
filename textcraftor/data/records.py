"""Captioned pictures, whatever layout they come in: see `layouts`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from textcraftor.data.fields import CAPTIONS, captions_of, is_caption, synthetic_of, texts_of
from textcraftor.data.layouts import WHERE, Layout, layout_of
from textcraftor.data.shards import rows_of_shard
from textcraftor.data.sources import InFile, Row, Source
from textcraftor.data.tables import rows_of_tables
from textcraftor.data.texts import PICTURES, json_rows, rows_of_pairs, rows_of_texts
from textcraftor.errors import UsageError, one_line
from textcraftor.files.pictures import to_rgb
from textcraftor.files.reading import open_picture


@dataclass(frozen=True)
class Record:
    """A picture's captions.

    Args:
        key: names the picture within its data set.
        caption: the data set's ground truth; of several the first.
        synthetic: captions that a model wrote, by their kind.
        quoted: texts that the picture shows.
        others: further ground truths.
    """

    key: str
    caption: str
    synthetic: Mapping[str, Sequence[str]] = field(default_factory=dict)
    quoted: Sequence[str] = ()
    others: Sequence[str] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """Every ground truth."""
        return (self.caption, *self.others)


@dataclass
class Records:
    """A data set.

    Args:
        records: whose pictures are those of `pictures`.
        skipped: what is wrong with a picture or its caption, by key.
        unread: what else lies in its folder, other splits among it.
    """

    records: list[Record]
    pictures: list[Source]
    skipped: dict[str, str] = field(default_factory=dict)
    unread: Sequence[str] = ()

    @classmethod
    def read(cls, path: str | Path, captions: Iterable[str | Path] = (), split: str = "train") -> Records:
        """Read the captions; pictures are opened when they are asked for.

        Args:
            captions: files of further synthetic captions, JSON lines with key, kind and text, as `recaption` writes.
            split: where the data set has several.

        Raises:
            UsageError: no data set, not this split, a damaged file, a field of the wrong type, no column of pictures
                or of captions, no caption at all.
        """
        check_records(path)
        layout, written = layout_of(path, split), _read_captions(captions)
        records, pictures, skipped = [], [], dict[str, str]()
        names, keys, described = set[str](), set[str](), False
        for row in rows_of(layout):
            names |= row.fields.keys()
            key = _key(row, keys)
            keys.add(key)
            texts = captions_of(row.at, row.fields)
            described = described or row.picture is not None
            if row.picture is None:
                skipped[key] = "it has no picture"
            elif not texts:
                skipped[key] = "its caption is empty" if layout.kind != "pairs" else "it has no caption beside it"
            else:
                synthetic: dict[str, list[str]] = {}
                for kind, text in [*synthetic_of(row.at, row.fields.get("synthetic")), *written.get(key, [])]:
                    synthetic.setdefault(kind, []).append(text)
                quoted = texts_of(row.at, "quoted", row.fields.get("quoted"))
                records.append(Record(key, texts[0], synthetic, tuple(quoted), tuple(texts[1:])))
                pictures.append(row.picture)
        if not described:
            raise _without(path, names, PICTURES)
        if not any(is_caption(name) for name in names):
            raise _without(path, names, CAPTIONS)
        if not records:
            raise UsageError(f"data.path={path}: every caption is empty: write some")
        if all(isinstance(one, InFile) and not os.path.exists(one.file) for one in pictures):
            raise UsageError(f"data.path={path}: none of its pictures is there, as {pictures[0]}: put them there")
        if unknown := set(written) - keys:
            raise UsageError(f"data.captions: {len(unknown)} keys are not in {path}, as {min(unknown)}")
        return cls(records, pictures, skipped, layout.unread)

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> Image.Image:
        """A record's picture, in RGB and upright, see `to_rgb`.

        Raises:
            OSError: it cannot be read.
        """
        try:
            with open_picture(*self.pictures[index].read()) as picture:
                return to_rgb(picture, upright=True)
        except (ValueError, SyntaxError) as error:
            raise OSError(one_line(error)) from error

    def only(self, kept: Sequence[int], skipped: Mapping[int, str] | None = None) -> Records:
        """Some of the records; `skipped` says by index why others are left out."""
        more = {self.records[index].key: reason for index, reason in (skipped or {}).items()}
        records, pictures = [self.records[index] for index in kept], [self.pictures[index] for index in kept]
        return Records(records, pictures, self.skipped | more, self.unread)

    @property
    def captions(self) -> list[str]:
        """Every caption of every record."""
        return [
            caption
            for record in self.records
            for caption in (*record.captions, *itertools.chain(*record.synthetic.values()))
        ]

    @property
    def kinds(self) -> dict[str, int]:
        """How many records have a synthetic caption of each kind."""
        counts: dict[str, int] = {}
        for record in self.records:
            for kind in record.synthetic:
                counts[kind] = counts.get(kind, 0) + 1
        return counts

    def told(self) -> str:
        """What was read and what was skipped, in one line."""
        kinds = ", ".join(f"{count} with {kind} captions" for kind, count in self.kinds.items()) or "none with others"
        line = f"data: {len(self)} captioned pictures, {kinds}"
        several = sum(len(record.captions) > 1 for record in self.records)
        line += f", {several} with several captions as found" if several else ""
        if self.skipped:
            named = "; ".join(f"{' '.join(key.split())}: {reason}" for key, reason in list(self.skipped.items())[:3])
            line += f"; {len(self.skipped)} skipped ({named}{'; …' if len(self.skipped) > 3 else ''})"
        if self.unread:
            line += f"; not read: {', '.join(self.unread[:3])}{', …' if len(self.unread) > 3 else ''}"
        return line


def check_records(path: str | Path | None, captions: Iterable[str | Path] = ()) -> None:
    """Refuse what is not there before any model loads."""
    if path is None:
        raise UsageError(f"data.path is needed: {WHERE}")
    if not Path(path).expanduser().exists():
        raise UsageError(f"data.path={path} does not exist: {WHERE}")
    for file in captions:
        if not Path(file).expanduser().is_file():
            raise UsageError(f"data.captions={file} does not exist: give the captions.jsonl that recaption wrote")


def rows_of(layout: Layout) -> Iterator[Row]:
    """Every row of a data set's split."""
    match layout.kind:
        case "pairs":
            return rows_of_pairs(layout)
        case ".tar":
            return itertools.chain.from_iterable(map(rows_of_shard, layout.files))
        case ".jsonl" | ".csv" | ".tsv":
            return rows_of_texts(layout)
        case _:
            return rows_of_tables(layout)


def _key(row: Row, taken: set[str]) -> str:
    """A row's own name; where others have it, with a number."""
    fields = row.fields
    key = str(fields.get("__key__") or fields.get("key") or fields.get("file_name") or row.key)
    if key not in taken:
        return key
    return next(other for number in itertools.count(2) if (other := f"{key} ({number})") not in taken)


def _without(path: str | Path, names: set[str], wanted: Sequence[str]) -> UsageError:
    """Why a data set without these columns cannot be read."""
    problem = f"data.path={path} has the columns {', '.join(sorted(names))}, but none of {', '.join(wanted)}"
    if wanted is PICTURES and any("url" in name for name in names):
        return UsageError(
            f"{problem}: download the pictures first, for instance with img2dataset, and give the folder that it writes"
        )
    return UsageError(f"{problem}: rename the one that holds the {'pictures' if wanted is PICTURES else 'captions'}")


def _read_captions(files: Iterable[str | Path]) -> dict[str, list[tuple[str, str]]]:
    """(kind, caption) by key."""
    written: dict[str, list[tuple[str, str]]] = {}
    for file in files:
        for number, row in json_rows(Path(file).expanduser()):
            at = f"data.captions={file}, line {number}"
            if not all(isinstance(row.get(name), str) for name in ("key", "kind", "text")):
                raise UsageError(f"{at}: key, kind and text are needed, each a text")
            for text in texts_of(at, "text", row["text"]):
                written.setdefault(row["key"], []).append((row["kind"], text))
    return written
