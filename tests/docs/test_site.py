"""The documentation: the site builds without a warning; blocks and notebooks run; generated pages are current."""

from __future__ import annotations

import json
import re
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.conftest import QUICK, ROOT
from textcraftor.api import calling
from textcraftor.claims.page import page
from textcraftor.cli import COMMANDS, compose, main, register
from textcraftor.evaluation.ledger import read_ledger

DOCS = ROOT / "docs"
MARKED = re.compile(r"<!-- run -->\n```(\w+)\n(.*?)```", re.DOTALL)
SMALL = {
    "train": (*QUICK, "evaluation.seeds=[0]", "tracker=null"),
    "generate": ("sampling.steps=2", "device=cpu"),
    "evaluate": ("sampling.steps=2", "device=cpu"),
    "score": ("device=cpu",),
    "export": (),
}
SMALL_CELL = "STEPS, PROMPTS, LIMIT, CLICKS = 1, 4, 1, 60\n"


def pages_with_blocks() -> list[Path]:
    return [file for file in sorted(DOCS.glob("*.md")) if MARKED.search(file.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("file", pages_with_blocks(), ids=lambda file: file.name)
def test_marked_blocks_run_in_their_order(tmp_path, monkeypatch, file):
    """As they stand there, on smaller settings; a block of Python that begins with a file's name is that file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for kind, block in MARKED.findall(file.read_text(encoding="utf-8")):
        if kind == "python":
            name = block.split("\n", 1)[0].removeprefix("# ")
            (tmp_path / name).write_text(block)
            continue
        for line in block.splitlines():
            program, command, *keys = shlex.split(line)
            assert program == "textcraftor"
            monkeypatch.setattr(sys, "argv", [program, command, *SMALL[command], *keys])
            main()
    assert (tmp_path / "runs").is_dir()
    assert (tmp_path / "scores").is_dir()


@pytest.fixture
def long(request) -> None:
    """`make docs` runs these, once; `make test` has no time for them."""
    if not request.config.getoption("long"):
        pytest.skip("make docs runs it, with --long")


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("file", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda file: file.name)
def test_notebooks_run(tmp_path, monkeypatch, file):
    """All cells in their order, but the one that installs, with small parameters. No output is kept in them."""
    meaning = calling.meaning

    @contextmanager
    def small(command, keys, values):
        kept = [key for key in SMALL[command] if not (key.startswith("evaluation.") and "evaluation" in values)]
        values = {name: value for name, value in values.items() if name not in ("training", "evaluation")}
        with meaning(command, (*kept, *keys), values) as config:
            yield config

    monkeypatch.setattr(calling, "meaning", small)
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and "install" not in tags:
            assert not cell["outputs"]
            exec(SMALL_CELL if "parameters" in tags else "".join(cell["source"]), names)
    assert list((tmp_path / "runs").glob("*/finished.json"))


def test_the_claims_page_is_that_of_the_ledger():
    assert (DOCS / "claims.md").read_text(encoding="utf-8") == page(read_ledger(DOCS / "results" / "claims.json"))


def test_the_claim_that_the_page_shows_is_one():
    """As a file of conf/claim/ it would be taken."""
    (text,) = re.findall(
        r"```yaml\n# textcraftor claims warmer\n(.*?)```", (DOCS / "evaluate.md").read_text(), re.DOTALL
    )
    register()
    claim = compose("claims", [], {"claim": yaml.safe_load(text)}).claim.warmer
    assert claim.checks["as much of the prompt"].margin == -0.01


def test_every_command_that_a_page_names_is_there():
    """Also in blocks that no test runs."""
    for file in [*DOCS.glob("*.md"), ROOT / "README.md"]:
        named = re.findall(r"^(?: {4})?textcraftor ([\w-]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert {*named} <= {*COMMANDS}, file.name


@pytest.mark.usefixtures("long")
@pytest.mark.filterwarnings("ignore")  # of mkdocs and its plugins; the site's own are errors
def test_the_site_builds_without_a_warning(tmp_path, monkeypatch):
    """With a page for every command: what each key takes, what it is unless given, what it is for."""
    config_module = pytest.importorskip("mkdocs.config")
    from mkdocs.commands.build import build

    monkeypatch.chdir(ROOT)
    config = config_module.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    site = tmp_path / "site"
    assert {file.parent.name for file in (site / "keys").glob("*/index.html")} == {*COMMANDS}
    keys = (site / "keys" / "train" / "index.html").read_text(encoding="utf-8")
    for text in ("training.steps", "a whole number, at least 1", "What is tuned.", "rewards.&lt;name&gt;.weight"):
        assert text in keys, text
    api = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert "Tune by reward." in api
