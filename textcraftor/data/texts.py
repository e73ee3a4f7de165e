"""The rows of tables that are text (JSON lines, CSV, TSV), and of texts beside pictures."""

from __future__ import annotations

import io
import itertools
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from textcraftor.data.layouts import CAPTION_SUFFIXES, PICTURE_SUFFIXES, Layout
from textcraftor.data.sources import InFile, Row, in_file, lowered
from textcraftor.errors import UsageError
from textcraftor.files.reading import MOST_TABLE, check_file, parse_json
from textcraftor.files.texts import cells_of, lines_of

# Columns that hold a picture or the path of one.
PICTURES = ("image", "png", "jpg", "jpeg", "webp", "file_name", "filename", "file", "image_path", "path", "img")


def rows_of_texts(layout: Layout) -> Iterator[Row]:
    """Rows that name their pictures' files.

    Raises:
        UsageError: a table is damaged, or names a file elsewhere.
    """
    numbers = itertools.count()
    for file in layout.files:
        unit, rows = ("line", json_rows(file)) if layout.kind == ".jsonl" else ("row", _cells(file))
        for number, row in rows:
            yield naming(f"{file}, {unit} {number}", str(next(numbers)), layout.folder, file.parent, lowered(row))


def naming(at: str, key: str, root: Path, folder: Path, fields: dict[str, Any]) -> Row:
    """A row that names its picture's file, relative to the table's folder."""
    name = next((name for name in PICTURES if fields.get(name)), None)
    if name is None:
        return Row(at, key, fields, None)
    if not isinstance(fields[name], str):
        raise UsageError(f"{at}: {name}={reprlib.repr(fields[name])} must be the name of a picture's file")
    return Row(at, key, fields, in_file(at, root, folder, fields[name]))


def json_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each line that is not empty, and the JSON object that it holds."""
    with check_file(file, MOST_TABLE).open("rb") as stream:
        for number, line in enumerate(lines_of(stream, file), 1):
            if line.strip():
                row = parse_json(f"{file}, line {number}", line)
                if not isinstance(row, dict):
                    raise UsageError(f"{file}, line {number}: {line.strip()[:60]} is no JSON object: write one a line")
                yield number, row


def _cells(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each row of a table with a header, and its cells by column."""
    with check_file(file, MOST_TABLE).open("rb") as stream:
        yield from cells_of(lines_of(stream, file), file.suffix.lower(), PICTURES, file)


def rows_of_pairs(layout: Layout) -> Iterator[Row]:
    """Pictures with a text beside them, each line a caption; and texts that have no picture."""
    beside: dict[Path, dict[str, Path]] = {}
    pictures = [file for file in layout.files if file.suffix.lower() in PICTURE_SUFFIXES]
    for file in layout.files:
        if file.suffix.lower() in CAPTION_SUFFIXES:
            beside.setdefault(file.with_suffix(""), {})[file.suffix.lower()] = file
    for picture in pictures:
        texts = beside.get(picture.with_suffix(""), {})
        text = next((texts[suffix] for suffix in CAPTION_SUFFIXES if suffix in texts), None)
        lines = [*lines_of(io.BytesIO(check_file(text).read_bytes()), text)] if text else []
        yield Row(str(picture), str(picture.relative_to(layout.folder)), {"txt": lines}, InFile(layout.folder, picture))
    for stem in sorted(set(beside) - {picture.with_suffix("") for picture in pictures}):
        for file in beside[stem].values():
            yield Row(str(file), str(file.relative_to(layout.folder)), {}, None)
