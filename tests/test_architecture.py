"""What the layout of the code promises: a family is its file, and imports go one way."""

from __future__ import annotations

import graphlib
import re

import grimp

from tests.conftest import ROOT

PACKAGE = ROOT / "textcraftor"
FAMILIES = PACKAGE / "models" / "families"


def sources() -> list:
    """Code, templates and configurations."""
    return [
        file for folder in (PACKAGE, ROOT / "conf") for end in ("py", "j2", "yaml") for file in folder.rglob(f"*.{end}")
    ]


def test_only_a_familys_own_file_knows_it():
    """Neither its classes nor the name of its denoiser stand elsewhere, and each file is short enough to write anew."""
    known = re.compile(r"StableDiffusion|CLIPTextModel|\.unet\b")
    naming = {file for file in sources() if known.search(file.read_text(encoding="utf-8"))}
    assert naming
    assert not [str(file.relative_to(ROOT)) for file in naming if file.parent != FAMILIES]
    lengths = {file.name: len(file.read_text().splitlines()) for file in FAMILIES.glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 120} == {}


def test_no_module_imports_one_that_imports_it():
    """Also within functions, where such a circle would hide; nor is one hidden from all but type checkers."""
    graph = grimp.build_graph(PACKAGE.name, cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imported) > 50
    graphlib.TopologicalSorter(imported).prepare()  # raises with the circle, where there is one
    hiding = {file for file in PACKAGE.rglob("*.py") if "TYPE_CHECKING" in file.read_text(encoding="utf-8")}
    assert hiding == {PACKAGE / "__init__.py"}
