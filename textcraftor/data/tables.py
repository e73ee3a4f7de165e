"""The rows of parquet files, and of what `datasets` saved."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from textcraftor.data.fields import is_caption
from textcraftor.data.layouts import Layout
from textcraftor.data.sources import InTable, Row, lowered
from textcraftor.data.texts import PICTURES, naming
from textcraftor.errors import UsageError, one_line
from textcraftor.files.reading import MOST_TABLE, check_file, read_json, shaped

FIELDS = ("json", "__key__", "key", "synthetic", "quoted", "url", "image_url")
STATE = {"_data_files": [{"filename": str}]}


def rows_of_tables(layout: Layout) -> Iterator[Row]:
    """Their rows; pictures stay in the table.

    Raises:
        UsageError: a file is damaged, or names a file elsewhere.
    """
    first = 0
    for folder, files in itertools.groupby(layout.files, key=lambda file: file.parent):
        table = _loaded(layout.kind, list(files))
        names = lowered({name: name for name in table.column_names})
        stored = [names[name] for name in PICTURES if name in names and not _is_text(table, names[name])]
        texts = [
            name
            for lower, name in names.items()
            if name not in stored and (lower in FIELDS + PICTURES or is_caption(lower))
        ]
        pictures = _undecoded(table.select_columns(stored))
        read: Iterable[Any] = table.select_columns(texts) if texts else itertools.repeat({}, len(table))
        for number, row in enumerate(read):
            at, key = f"{layout.folder}, row {first + number}", str(first + number)
            fields: dict[str, Any] = dict.fromkeys(names) | lowered(row)
            if isinstance(fields.get("json"), dict):
                fields = {**lowered(fields["json"]), **fields}
            if stored:
                yield Row(at, key, fields, InTable(pictures, number, layout.folder, folder))
            else:
                yield naming(at, key, layout.folder, folder, fields)
        first += len(table)


def _loaded(kind: str, files: list[Path]) -> Any:
    """The `datasets.Dataset` of some files."""
    import datasets  # seconds at start-up, for commands that read no pictures too

    datasets.disable_progress_bars()
    try:
        if kind == "saved":
            _check_saved(files[0])
            return datasets.Dataset.load_from_disk(str(files[0])).with_format(None)
        names = [glob.escape(str(check_file(file, MOST_TABLE))) for file in files]
        return datasets.load_dataset("parquet", data_files=names, split="train")
    except UsageError:
        raise
    except Exception as error:  # datasets and pyarrow raise a dozen kinds over a damaged file
        raise UsageError(f"data.path={files[0]} cannot be read: {one_line(error.__cause__ or error)}") from error


def _check_saved(folder: Path) -> None:
    """Refuse a folder that `datasets` would leave."""
    state = folder / "state.json"
    for one in shaped(state, read_json(state), STATE)["_data_files"]:
        if Path(one["filename"]).name != one["filename"]:
            raise UsageError(f"{state}: {one['filename'][:80]} leads out of {folder}: save the data set again")
        check_file(folder / one["filename"], MOST_TABLE)


def _is_text(table: Any, column: str) -> bool:
    return getattr(table.features[column], "dtype", None) in ("string", "large_string")


def _undecoded(table: Any) -> Any:
    """The same, with pictures as they are stored: bytes or paths."""
    import datasets

    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table
