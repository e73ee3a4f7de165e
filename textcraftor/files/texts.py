"""Text as people's tools write it: in the encoding that a byte order mark names, else in UTF-8; and tables of it."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from textcraftor.errors import UsageError

# Longest first: UTF-32's mark begins with UTF-16's.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LONGEST_MARK = max(map(len, BYTE_ORDER_MARKS))
MARK = "\ufeff"  # as a sign, which nobody writes on purpose: files that were joined have it in their middle
DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
MOST_CELL = 2**24  # signs of a table's cell, which may hold a picture's bytes as text; Python's own limit is 2^17
REMEDY = "save it as UTF-8"


def lines_of(stream: BinaryIO, place: Path | str) -> Iterator[str]:
    """A file's lines with their ends, which are line feeds and carriage returns alone.

    Args:
        stream: is closed at the end.
        place: where it stands, for people.

    Raises:
        UsageError: a byte that is no text.
    """
    start = stream.read(LONGEST_MARK)
    stream.seek(0)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8")
    at = f"{place} is no text in {encoding.upper()}"
    with io.TextIOWrapper(stream, encoding, newline="") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if "\0" in line:
                    raise UsageError(f"{at} (line {number} has the byte 0x00): {REMEDY}")
                yield line.replace(MARK, "")
        except UnicodeDecodeError as error:
            position = stream.tell() - len(error.object) + error.start
            raise UsageError(f"{at} (byte {position} is 0x{error.object[error.start]:02x}): {REMEDY}") from error


def text_of(content: bytes, place: Path | str) -> str:
    """A text's bytes decoded, see `lines_of`."""
    return "".join(lines_of(io.BytesIO(content), place))


def cells_of(
    lines: Iterable[str], suffix: str, columns: Collection[str], place: Path | str
) -> Iterator[tuple[int, dict[str, str]]]:
    """The number of each row of a table below its header, and its cells by column; cells that are missing are empty.

    Args:
        suffix: .csv or .tsv.
        columns: in lower case; the delimiter is the first that makes a column of one of these names.

    Raises:
        UsageError: quotes that do not fit, or more cells than the header has.
    """
    lines = [*lines]
    first = next((line for line in lines if line.strip()), "")
    headers = {mark: {name.strip(' "\r\n').lower() for name in first.split(mark)} for mark in DELIMITERS[suffix]}
    delimiter = next((mark for mark in headers if headers[mark] & {*columns}), DELIMITERS[suffix][0])
    rows = _rows(lines, delimiter, place)
    names = [name.strip() for name in next(iter(rows), [])]
    header = [f"{name}_{before}" if (before := names[:at].count(name)) else name for at, name in enumerate(names)]
    for number, cells in enumerate(rows[1:], 1):
        if len(cells) > len(header):
            raise UsageError(
                f"{place}, row {number} has {len(cells)} cells for {len(header)} columns: put texts that hold the "
                "delimiter into double quotes"
            )
        yield number, dict(itertools.zip_longest(header, cells, fillvalue=""))


def _rows(lines: list[str], delimiter: str, place: Path | str) -> list[list[str]]:
    """The cells of each row, empty rows left out. Texts may be quoted as RFC 4180 says; where quotes do not fit that,
    as in tables with tabs that quote nothing, they belong to the text."""
    csv.field_size_limit(MOST_CELL)
    failure = None
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE) if delimiter == "\t" else (csv.QUOTE_MINIMAL,):
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True)
        try:
            return [row for row in reader if row]
        except csv.Error as error:
            failure = f"line {reader.line_num}: {error}"
    raise UsageError(
        f"{place} cannot be read as a table ({failure}): put texts into double quotes and double those within"
    )
