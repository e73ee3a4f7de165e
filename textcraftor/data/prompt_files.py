"""Reads files of prompts: text, CSV, TSV, JSON, JSON lines or parquet, as people's other tools write them."""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from textcraftor.assets import is_address, local_file
from textcraftor.data.prompts import COLUMNS
from textcraftor.errors import UsageError, one_line
from textcraftor.files.reading import MB, check_file, is_writable, parse_json
from textcraftor.files.texts import cells_of, lines_of, text_of

MOST_BYTES = 1024 * MB  # of a file of prompts, unpacked
PLACEHOLDER = "{prompt}"  # in the styles of AUTOMATIC1111's and Fooocus' interfaces
TEXTS = "prompts.texts"  # the key of prompts that stand in the configuration itself
Say = Callable[[str], object]


def read_prompts(
    path: str | Path | None, column: str | None = None, key: str = "prompts.path", say: Say | None = None
) -> list[str]:
    """The different prompts of a file, see `read_rows`."""
    return [row["prompt"] for row in read_rows(path, column, key, say)]


def read_rows(
    path: str | Path | None, column: str | None = None, key: str = "prompts.path", say: Say | None = None
) -> list[dict[str, Any]]:
    """The rows of a file with different prompts, each under `prompt`; empty ones and repetitions are left out.

    Args:
        path: a local path, `hf://owner/repo/file` or `https://host/file#sha256=...`; its name ends in .csv, .tsv,
            .json, .jsonl or .parquet, perhaps with .gz after it, else it holds one prompt a line.
        column: the column of prompts, null for the first of `COLUMNS` in any case.
        key: of the configuration, for messages.
        say: prints in one line how many prompts there are, and how many were left out.

    Raises:
        UsageError: no such file, no column of prompts, no prompt in it, or text that cannot be read.
    """
    name = str(path).partition("#")[0] if is_address(str(path)) else str(path)
    return _different(all_rows(path, column, key), f"{key}={path}", name, say)


def given_prompts(prompts: Mapping[str, Any], say: Say | None = None) -> list[str]:
    """The different prompts of a configuration's `prompts`, see `given_rows`."""
    return [row["prompt"] for row in given_rows(prompts, say)]


def given_rows(prompts: Mapping[str, Any], say: Say | None = None) -> list[dict[str, Any]]:
    """The rows with different prompts of a configuration's `prompts`: its texts where it has some, else its file's.

    Raises:
        UsageError: as `read_rows`.
    """
    if prompts["texts"] is None:
        return read_rows(prompts["path"], prompts["column"], say=say)
    return _different(every_given_row(prompts), TEXTS, TEXTS, say)


def every_given_row(prompts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same in their order, with repetitions and empty ones; none where neither texts nor a file are given."""
    if prompts["texts"] is not None:
        return [_with_prompt(text, None, f"{TEXTS}, row {number}") for number, text in enumerate(prompts["texts"], 1)]
    return [] if prompts["path"] is None else all_rows(prompts["path"], prompts["column"])


def place_of(prompts: Mapping[str, Any]) -> str:
    """Where a configuration's prompts come from, for messages."""
    return TEXTS if prompts["texts"] is not None else f"prompts.path={prompts['path']}"


def is_given(prompts: Mapping[str, Any]) -> bool:
    """Whether a configuration gives any prompts."""
    return prompts["texts"] is not None or prompts["path"] is not None


def _different(rows: list[dict[str, Any]], place: str, name: str, say: Say | None) -> list[dict[str, Any]]:
    """Rows with different prompts; empty ones and repetitions are left out."""
    different = dict[str, dict[str, Any]]()
    for row in rows:
        if row["prompt"]:
            different.setdefault(row["prompt"], row)
    if not different:
        raise UsageError(f"{place} holds no prompt: write one prompt a line")
    if say:
        empty = sum(not row["prompt"] for row in rows)
        say(f"prompts: {len(different):,} in {name}{left_out(len(rows) - empty - len(different), empty)}")
    return list(different.values())


def left_out(repeated: int, empty: int) -> str:
    """What was left out of a file, in words."""
    counts = {"repetition": repeated, "empty one": empty}
    words = [f"{count:,} {name}{'s' * (count > 1)}" for name, count in counts.items() if count]
    return f", {' and '.join(words)} left out" if words else ""


def all_rows(path: str | Path | None, column: str | None = None, key: str = "prompts.path") -> list[dict[str, Any]]:
    """Every row of a file of prompts in its order, with its text under `prompt`, which may be empty."""
    if path is None:
        raise UsageError(f"{key} is needed: give a text file with one prompt a line")
    place = f"{key}={path}"
    local = Path(path).expanduser()
    if not is_address(str(path)) and not local.is_file():
        wrong = "is a folder" if local.is_dir() else "is no regular file" if local.exists() else "does not exist"
        raise UsageError(f"{place} {wrong}: give a text file with one prompt a line")
    file = local_file(str(path), key).resolve()
    content, suffix = unpacked(file, place)
    if suffix == ".parquet":
        rows: Iterable[Any] = _parquet(content, place)
    elif suffix == ".json":
        rows = _json(text_of(content, place), place)
    else:
        lines = lines_of(io.BytesIO(content), place)
        match suffix:
            case ".csv" | ".tsv":
                wanted = [column.strip().lower()] if column else COLUMNS
                rows = (row for _, row in cells_of(lines, suffix, wanted, place))
            case ".jsonl" | ".ndjson":
                rows = _json_lines(lines, place)
            case _:
                rows = lines
    return [_with_prompt(row, column, f"{place}, row {number}") for number, row in enumerate(rows, 1)]


def unpacked(file: Path, place: str) -> tuple[bytes, str]:
    """A file's bytes, without gzip, and the suffix that says its format, in lower case."""
    content, suffixes = check_file(file, MOST_BYTES).read_bytes(), [suffix.lower() for suffix in file.suffixes]
    if suffixes[-1:] != [".gz"]:
        return content, suffixes[-1] if suffixes else ""
    try:
        with gzip.open(io.BytesIO(content)) as stream:
            content = stream.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{place} cannot be unpacked ({one_line(error)}): write it again") from error
    if len(content) > MOST_BYTES:
        raise UsageError(f"{place} has more than {MOST_BYTES:,} bytes when unpacked: split it")
    return content, suffixes[-2] if len(suffixes) > 1 else ""


def _json(text: str, place: str) -> list[Any]:
    """The elements of a list; JSON lines under that name are taken too."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            return [*_json_lines(io.StringIO(text, newline=None), place)]
        raise UsageError(f"{place} cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(rows, list):
        kind = "an object" if isinstance(rows, dict) else f"a {type(rows).__name__}"
        raise UsageError(f"{place} holds {kind}: give a list of texts, or of objects with {' or '.join(COLUMNS)}")
    return rows


def _json_lines(lines: Iterable[str], place: str) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield parse_json(f"{place}, line {number}", line)


def _parquet(content: bytes, place: str) -> list[dict[str, Any]]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    except Exception as error:  # pyarrow raises a dozen kinds, also over dates that Python does not have
        raise UsageError(f"{place} cannot be read as parquet: {one_line(error)}") from error


def _with_prompt(row: Any, column: str | None, place: str) -> dict[str, Any]:
    """A row whose prompt stands under `prompt`."""
    if isinstance(row, Mapping):
        names = {str(name).strip().lower(): name for name in sorted(map(str, row), key=str.islower)}
        wanted = [column.strip().lower()] if column else COLUMNS
        chosen = column if column in row else next((names[name] for name in wanted if name in names), None)
        if chosen is None:
            there = ", ".join(map(str, row)) or "none"
            raise UsageError(
                f"{place}: no column {' or '.join(wanted)}; its columns are {there}: name one by prompts.column="
            )
        fields, prompt = dict(row), row[chosen]
    else:
        fields, prompt = {}, row
    if prompt is None or (isinstance(prompt, float) and math.isnan(prompt)):
        prompt = ""
    if not isinstance(prompt, str):
        raise UsageError(f"{place}: {shown(str(prompt))} is no text: a prompt is one")
    if "\0" in prompt or not is_writable(prompt):
        raise UsageError(f"{place}: {shown(prompt)} has a character that no text can hold: take it out")
    if PLACEHOLDER in prompt:
        raise UsageError(f"{place}: {shown(prompt)} has the placeholder {PLACEHOLDER}: write prompts in full")
    return fields | {"prompt": prompt.strip()}


def shown(text: str) -> str:
    """The beginning of a text as a message can hold it."""
    return repr(text[:60])
