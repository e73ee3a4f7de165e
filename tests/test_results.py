"""Every figure in a table of the documentation comes from a stored result."""

from __future__ import annotations

import json
import re

import pytest
import results

NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e-\d+)?( ?%| GB)?(,? .*)?")


def share_of_figures(table: list[str]) -> float:
    """How many of a table's cells, its first column left out, begin with a number."""
    cells = [cell.strip() for row in table[2:] for cell in row.strip().strip("|").split("|")[1:]]
    return sum(bool(NUMBER.fullmatch(cell)) for cell in cells) / max(len(cells), 1)


@pytest.mark.parametrize("path", results.DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_of_the_stored_results(path):
    """Rendered again, nothing differs; and no table of figures stands without its result."""
    document = path.read_text()
    assert results.rendered(document) == document
    lines, unnamed = document.split("\n"), []
    for index, line in enumerate(lines):
        if line.startswith("|") and not lines[index - 1].startswith("|"):
            end = next(i for i in range(index, len(lines)) if not lines[i].startswith("|"))
            if not lines[index - 2].startswith("<!-- ") and share_of_figures(lines[index:end]) > 0.5:
                unnamed.append(line)
    assert unnamed == []


def test_results_say_how_they_were_made():
    """Each table has its command, date and commit, and the versions of what it was made with."""
    files = sorted(results.RESULTS.glob("*.json"))
    assert files
    for path in files:
        for title, table in json.loads(path.read_text()).items():
            assert {"command", "date", "commit", "versions", "columns", "rows"} <= set(table), f"{path.name}: {title}"


def test_cells():
    """Means, intervals and spreads of seeds in the formats that the documentation uses."""
    assert results.cell_text({"mean": 0.2, "low": -0.1, "high": 0.5, "sd": 0.04}, "+.2f") == (
        "+0.20 [-0.10, +0.50] (0.04)"
    )
    assert results.cell_text({"mean": 0.2, "low": None, "high": None}, "+.2f") == "+0.20 none"
    assert results.cell_text({"mean": 0.05, "before": 0.8, "after": 0.85}, "+.2f") == "0.80 -> 0.85, +0.05"
    assert results.cell_text(None, ".2f") == ""
    assert results.cell_text("not reached", ".2f") == "not reached"
    table = results.new_table(["run", ("total", "+.1f")], [["a", 1.25], ["b", None]])
    assert results.markdown(table) == "| run | total |\n| --- | --- |\n| a | +1.2 |\n| b |  |\n"
