"""The ledger of results: every table of figures in the documentation is kept as JSON, with what it was made by."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from textcraftor.files.writing import write_text

Column = Sequence[str]  # a name, or of figures a name and the format of a number: ("total", "+.3f")
Rows = Sequence[Sequence[Any]]
VERSIONS = ("torch", "diffusers", "transformers", "peft")
CHECKOUT = Path(__file__).parents[2]  # of an installed package this is no checkout


def commit() -> str:
    """The commit that is checked out."""
    shown = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True)
    return shown.stdout.strip()


def made_by(command: str, **context: Any) -> dict[str, Any]:
    """What a table was made by: the command, the date, the commit where there is a checkout, and the versions.

    Args:
        context: what a reader needs beside the command to make the figures again: `seeds`, `device`.
    """
    return {
        "command": command,
        **context,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit() if (CHECKOUT / ".git").exists() else "",
        "versions": {package: version(package) for package in VERSIONS},
    }


def read_ledger(file: Path) -> dict[str, Any]:
    """The entries of a ledger by title; none where the file is not there yet."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def enter(file: Path, entries: Mapping[str, Any]) -> None:
    """Add entries to a ledger, or put them in the place of those of the same titles."""
    text = json.dumps(read_ledger(file) | dict(entries), indent=1, ensure_ascii=False, default=float, allow_nan=False)
    write_text(file, text + "\n")


def new_table(columns: Sequence[Column], rows: Rows) -> dict[str, Any]:
    """A table for a ledger.

    Args:
        rows: cells, each a text, a number, None for an empty one, or a mapping of `mean`, `low` and `high` (an
            interval, None where there is none), `sd` (over training seeds), `n` (prompts), `before` and `after`, of
            which any but `mean` may lack.
    """
    named = [{"name": one} if isinstance(one, str) else {"name": one[0], "format": one[1]} for one in columns]
    return {"columns": named, "rows": [list(row) for row in rows]}


def cell_text(cell: Any, form: str) -> str:
    """A cell as the documentation shows it."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    if not isinstance(cell, Mapping):
        return format(cell, form)
    text = format(cell["mean"], form)
    if "before" in cell:
        text = f"{cell['before']:{form.lstrip('+')}} -> {cell['after']:{form.lstrip('+')}}, {text}"
    if "low" in cell:
        text += " none" if cell["low"] is None else f" [{cell['low']:{form}}, {cell['high']:{form}}]"
    text += f" ({cell['sd']:{form.lstrip('+')}})" if "sd" in cell else ""
    return f"{text}, n {cell['n']}" if "n" in cell else text


def markdown(table: Mapping[str, Any]) -> str:
    """A table as Markdown."""
    columns = table["columns"]
    lines = [[column["name"] for column in columns], ["---"] * len(columns)]
    for row in table["rows"]:
        lines.append([cell_text(cell, col.get("format", "")) for cell, col in zip(row, columns, strict=True)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
