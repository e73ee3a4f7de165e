"""Captioned pictures: a folder with a table, webdataset shards, or a folder of `datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from textcraftor.data.prompts import COLUMNS
from textcraftor.errors import UsageError
from textcraftor.files.pictures import to_rgb
from textcraftor.files.reading import open_picture

PICTURES = ("image", "png", "jpg", "jpeg", "webp", "file_name")  # columns that hold a picture or the path of one
CAPTIONS = (*COLUMNS, "txt")  # columns that hold the ground-truth caption
TABLES = ("metadata.jsonl", "metadata.parquet", "*.jsonl", "*.parquet")
WHERE = "give a folder of pictures with metadata.jsonl or .parquet, of webdataset .tar shards, or of datasets"


@dataclass(frozen=True)
class Record:
    """A picture's captions.

    Args:
        key: names the picture within its data set.
        caption: the ground truth, as it was found.
        synthetic: captions that a model wrote, by their kind.
        quoted: texts that the picture shows.
    """

    key: str
    caption: str
    synthetic: Mapping[str, Sequence[str]] = field(default_factory=dict)
    quoted: Sequence[str] = ()


@dataclass
class Records:
    """A data set.

    Args:
        table: a `datasets.Dataset`, a row for each of `records` and `skipped`.
        rows: of the table, one for each record.
        skipped: what is wrong with a picture or its caption, by key.
    """

    table: Any
    folder: Path
    records: list[Record]
    rows: list[int]
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path, captions: Iterable[str | Path] = ()) -> Records:
        """Read the table; pictures are opened when they are asked for.

        Args:
            captions: files of further synthetic captions, JSON lines with key, kind and text, as `recaption` writes.

        Raises:
            UsageError: no such folder, no table in it, no column of pictures or of captions, no caption at all.
        """
        import datasets  # seconds at start-up, for commands that read no pictures too

        folder, table = _open(path)
        picture, caption = _column(path, table.features, PICTURES), _column(path, _fields(table), CAPTIONS)
        stored = not isinstance(table.features[picture], datasets.Value)  # beside its path, perhaps instead of it
        plain = table.cast_column(picture, datasets.Image(decode=False)) if stored else table
        written = _read_captions(captions)
        found, rows, skipped = [], [], dict[str, str]()
        for number, row in enumerate(plain.remove_columns(picture) if stored else plain):
            fields = {**(row.get("json") or {}), **row}
            key = str(fields.get("__key__") or fields.get("key") or fields.get("file_name") or number)
            text = str(fields.get(caption) or "").strip()
            if not text:
                skipped[key] = "its caption is empty"
                continue
            synthetic: dict[str, list[str]] = {}
            for kind, said in [*_synthetic(fields), *written.get(key, [])]:
                synthetic.setdefault(kind, []).append(said)
            found.append(Record(key, text, synthetic, tuple(fields.get("quoted") or ())))
            rows.append(number)
        if not found:
            raise UsageError(f"data.path={path}: every caption is empty: fill the column {caption}")
        unknown = set(written) - {record.key for record in found} - set(skipped)
        if unknown:
            raise UsageError(f"data.captions: {len(unknown)} keys are not in {path}, as {min(unknown)}")
        return cls(plain, folder, found, rows, skipped)

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> Image.Image:
        """A record's picture, in RGB and upright, see `to_rgb`.

        Raises:
            OSError: it cannot be read.
        """
        row = self.table[self.rows[index]]
        value = next(row[name] for name in PICTURES if row.get(name) is not None)
        if isinstance(value, dict):
            file, stored = self.folder / (value["path"] or self.records[index].key), value["bytes"]
        else:
            file, stored = self.folder / value, None
        try:
            with open_picture(file, stored) as picture:
                return to_rgb(picture, upright=True)
        except (ValueError, SyntaxError) as error:
            raise OSError(str(error)) from error

    def only(self, kept: Sequence[int], skipped: Mapping[int, str] | None = None) -> Records:
        """Some of the records; why others were skipped is told by their index."""
        more = {self.records[index].key: reason for index, reason in (skipped or {}).items()}
        records, rows = [self.records[index] for index in kept], [self.rows[index] for index in kept]
        return Records(self.table, self.folder, records, rows, self.skipped | more)

    @property
    def captions(self) -> list[str]:
        """Every caption of every record."""
        return [
            caption
            for record in self.records
            for caption in (record.caption, *(text for texts in record.synthetic.values() for text in texts))
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
        if self.skipped:
            named = "; ".join(f"{key}: {reason}" for key, reason in list(self.skipped.items())[:3])
            line += f"; {len(self.skipped)} skipped ({named}{'; …' if len(self.skipped) > 3 else ''})"
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


def _open(path: str | Path) -> tuple[Path, Any]:
    """The folder that paths in the table are relative to, and the table."""
    import datasets

    check_records(path)
    place = Path(path).expanduser()
    folder = place if place.is_dir() else place.parent
    datasets.disable_progress_bars()
    try:
        if (place / "state.json").exists() or (place / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(str(place))
            return folder, loaded if isinstance(loaded, datasets.Dataset) else loaded[next(iter(loaded))]
        shards = [place] if place.suffix == ".tar" else sorted(place.glob("*.tar"))
        tables = [place] if place.is_file() else [f for pattern in TABLES for f in sorted(place.glob(pattern))][:1]
        if shards:
            builder, files = "webdataset", shards
        elif tables:
            builder, files = {".jsonl": "json", ".parquet": "parquet"}.get(tables[0].suffix, ""), tables
        else:
            builder, files = "", []
        if not builder:
            raise UsageError(f"data.path={path} holds no table: {WHERE}")
        return folder, datasets.load_dataset(builder, data_files=[str(file) for file in files], split="train")
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
        raise UsageError(f"data.path={path} cannot be read: {error.__cause__ or error}") from error


def _fields(table: Any) -> dict[str, Any]:
    """The table's columns, and what webdataset's JSON files hold."""
    return {**(table.features.get("json") or {}), **table.features}


def _column(path: str | Path, columns: Mapping[str, Any], names: Sequence[str]) -> str:
    for name in names:
        if name in columns:
            return name
    raise UsageError(f"data.path={path} has the columns {', '.join(columns)}, but none of {', '.join(names)}")


def _synthetic(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(kind, caption) of a row's own synthetic captions."""
    for one in row.get("synthetic") or []:
        if (one.get("text") or "").strip():
            yield str(one.get("kind")), one["text"].strip()


def _read_captions(files: Iterable[str | Path]) -> dict[str, list[tuple[str, str]]]:
    """(kind, caption) by key."""
    found: dict[str, list[tuple[str, str]]] = {}
    for file in files:
        for number, line in enumerate(Path(file).expanduser().read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                key, kind, text = str(row["key"]), str(row["kind"]), str(row["text"]).strip()
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise UsageError(
                    f"data.captions={file}, line {number}: key, kind and text are needed: {error}"
                ) from error
            if text:
                found.setdefault(key, []).append((kind, text))
    return found
