"""Results as data: every table of figures in the documentation is rendered from a file in docs/results.

    python scripts/results.py            # renders all of them again, each after its line `<!-- FILE.json: TABLE -->`

The scripts that measure print their tables, and keep them there where they are called with --store.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from textcraftor.evaluation.ledger import Column, Rows, cell_text, enter, made_by, markdown, new_table

__all__ = ["Column", "Rows", "cell_text", "markdown", "new_parser", "new_table", "rendered", "show"]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
DOCUMENTS = (
    *(ROOT / "README.md", ROOT / "textcraftor/toybox/README.md", ROOT / "textcraftor/toybox/world2/README.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
)
PLACE = re.compile(r"(<!-- ([\w-]+\.json): (.+?) -->\n\n)(?:\|.*\n)*")


def show(file: str, title: str, columns: Sequence[Column], rows: Rows, store: bool, **context) -> None:
    """Print a table as Markdown, and on request keep it in docs/results/<file>.json.

    Args:
        rows: see `new_table`.
        context: see `made_by`.
    """
    table = new_table(columns, rows)
    print(f"{title}\n\n{markdown(table)}", flush=True)
    if store:
        script, *options = sys.argv
        command = shlex.join(["python", f"scripts/{Path(script).name}", *(o for o in options if o != "--store")])
        enter(RESULTS / f"{file}.json", {title: made_by(command, **context) | table})


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of a script that prints tables."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="store_true", help="keep the tables in docs/results")
    return parser


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
