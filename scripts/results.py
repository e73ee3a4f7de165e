"""Results as data: every table of figures in the documentation is rendered from a file in docs/results.

    python scripts/results.py            # renders all of them again, each after its line `<!-- FILE.json: TABLE -->`

The scripts that measure print their tables, and keep them there where they are called with --store.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
DOCUMENTS = (
    *(ROOT / "README.md", ROOT / "textcraftor/toybox/README.md", ROOT / "textcraftor/toybox/world2/README.md"),
    *sorted((ROOT / "docs").glob("*.md")),
)
PLACE = re.compile(r"(<!-- ([\w-]+\.json): (.+?) -->\n\n)(?:\|.*\n)*")
Column = Sequence[str]  # a name, or of figures a name and the format of a number: ("total", "+.3f")
Rows = Sequence[Sequence[Any]]
VERSIONS = ("torch", "diffusers", "transformers", "peft")


def show(file: str, title: str, columns: Sequence[Column], rows: Rows, store: bool, **context) -> None:
    """Print a table as Markdown, and on request keep it in docs/results/<file>.json.

    Args:
        rows: cells, each a text, a number, None for an empty one, or a mapping of `mean`, `low` and `high` (an
            interval, None where there is none), `sd` (over training seeds), `n` (prompts), `before` and `after`, of
            which any but `mean` may lack.
        context: what a reader needs beside the command to make the figures again: `seeds`, `device` ...
    """
    table = new_table(columns, rows)
    print(f"{title}\n\n{markdown(table)}", flush=True)
    if not store:
        return
    path = RESULTS / f"{file}.json"
    script, *options = sys.argv
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    made = {
        "command": shlex.join(["python", f"scripts/{Path(script).name}", *(o for o in options if o != "--store")]),
        **context,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "versions": {package: version(package) for package in VERSIONS},
    }
    found = json.loads(path.read_text()) if path.exists() else {}
    found[title] = made | table
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False, default=float, allow_nan=False) + "\n")


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of a script that prints tables."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="store_true", help="keep the tables in docs/results")
    return parser


def new_table(columns: Sequence[Column], rows: Rows) -> dict:
    """Columns and rows, as `show` takes them, ready for JSON."""
    named = [{"name": one} if isinstance(one, str) else {"name": one[0], "format": one[1]} for one in columns]
    return {
        "columns": named,
        "rows": [list(row) for row in rows],
    }


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


def markdown(one: Mapping[str, Any]) -> str:
    """A table as Markdown."""
    columns = one["columns"]
    lines = [[column["name"] for column in columns], ["---"] * len(columns)]
    for row in one["rows"]:
        lines.append([cell_text(cell, col.get("format", "")) for cell, col in zip(row, columns, strict=True)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rendered(document: str) -> str:
    """A document with its tables rendered again."""

    def render(place: re.Match) -> str:
        return place[1] + markdown(json.loads((RESULTS / place[2]).read_text())[place[3]])

    return PLACE.sub(render, document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for path in DOCUMENTS:
        path.write_text(rendered(path.read_text()))


if __name__ == "__main__":
    main()
