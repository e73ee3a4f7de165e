"""Command lines made from every command's typed keys: each is taken, or refused in one line; none ends otherwise."""

from __future__ import annotations

import importlib
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.evaluation.test_rating import make_pictures, rated
from textcraftor.cli import COMMANDS, configured, paths_as_list, register, told
from textcraftor.config.commands import SCHEMAS
from textcraftor.config.overrides import as_typed
from textcraftor.config.rules import Rule
from textcraftor.config.schema import Key
from textcraftor.evaluation.choosing import pair_units
from textcraftor.evaluation.picture_sets import read_sets
from textcraftor.evaluation.rating import FILE, add, begin

KEYS = {command: ["", *Key(schema, Rule("")).keys()] for command, schema in SCHEMAS.items()}
VALUES = [
    "",
    " ",
    "null",
    "true",
    "0",
    "-1",
    "1",
    "2",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e-400",
    "99999999999999999999999",
    "1_000",
    "[]",
    "[1]",
    "[1,1]",
    "[a]",
    "[null]",
    "[[1]]",
    "{}",
    "{a: 1}",
    "{a: {b: [1]}}",
    "a,b",
    "abc",
    "auto",
    "cpu",
    "cuda:99",
    "?",
    "???",
    "'",
    '"',
    "[",
    "{",
    "${",
    "${seed}",
    "${nowhere}",
    "${now:%Y}",
    "${oc.env:HOME}",
    "${package:os}",
    "\\",
    "\n",
    "\t",
    "\x00",
    "\ud800",
    "漢字",
    "../..",
    "/",
    "~",
    ".",
    "x" * 300,
    "a/" * 3000,
    "range(1,3)",
    "choice(1,2)",
    "int(x)",
    "glob(*)",
]
SIGNS = ["", "", "", "", "+", "++", "~"]
PLAIN = {
    "generate": ["prompt=a red circle"],
    "score": ["images=."],
    "export": ["tuned.a={run}"],
    "evaluate": ["suite=toybox"],
    "compare": ["{run}", "{run}"],
    "claims": ["tuned_encoder"],
    "app": ["{run}"],
    "rate": ["models.a=a", "models.b=b", "port=0"],
    "ratings": ["ratings.jsonl"],
    "train-reward": ["ratings.jsonl", "models.a=a", "models.b=b"],
    "upsample": ["prompts.path=p.txt"],
    "recaption": ["data.path=."],
    "enhance": ["prompts.path=p.txt", "understander=written"],
    "train-captioner": ["data.path=."],
    "tune-captions": ["data.path=."],
}


@st.composite
def command_lines(draw) -> tuple[str, list[str]]:
    """A command with up to three keys of its own, and values that may or may not be meant."""
    command = draw(st.sampled_from(sorted(SCHEMAS)))
    overrides = []
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(KEYS[command]) | st.text("abc._@/:", max_size=6))
        value = draw(st.sampled_from(VALUES) | st.text(max_size=8))
        sign = draw(st.sampled_from(SIGNS))
        overrides.append(f"{sign}{key}" if sign == "~" else f"{sign}{key}={value}")
    return command, overrides


def ends_well(command: str, overrides: list[str]) -> None:
    """Compose and check a command line as the command does before anything is loaded."""
    try:
        config = configured(command, as_typed(command, paths_as_list(command, overrides)))
        importlib.import_module(COMMANDS[command][0]).check(config, Path(config.run_dir).expanduser())
        OmegaConf.to_container(config, resolve=True)
    except Exception as error:
        line, code = told(error)
        if code != 2:
            raise
        if "\n" in line or not line.strip():
            raise ValueError(f"{line!r} is no line") from error


@pytest.fixture
def place(here) -> Path:
    """A working folder with prompts, pictures of two models and an answer about them."""
    (here / "p.txt").write_text("a red circle\na blue star\na pink cross\na green ring\n")
    sets = read_sets({name: make_pictures(here / name, shade) for shade, name in enumerate("ab")})
    ratings = begin(here / FILE, {name: one.fingerprint for name, one in sets.items()}, {"prefer": "Which?"})
    add(here / FILE, ratings, rated(pair_units(sets)[0], "left"))
    return here


def test_every_command_line_is_taken_or_refused(run, place, request):
    register()
    before = sorted(place.rglob("*"))
    count = 4000 if request.config.getoption("long") else 80

    @hypothesis.settings(max_examples=count, deadline=None, database=None, derandomize=True)
    @hypothesis.given(command_lines())
    def check(line: tuple[str, list[str]]) -> None:
        command, overrides = line
        plain = [one.replace("{run}", str(run)) for one in PLAIN.get(command, [])]
        ends_well(command, [*plain, *overrides])
        assert sorted(place.rglob("*")) == before, "something was written"

    check()


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_key_refuses_or_takes_each_value(command, run, place, request):
    """Each key alone with each value: thousands of them, minutes for each command."""
    if not request.config.getoption("long"):
        pytest.skip("without --long the lines above draw some")
    register()
    plain = [one.replace("{run}", str(run)) for one in PLAIN.get(command, [])]
    wrong = []
    for key in KEYS[command][1:]:
        for value in VALUES:
            try:
                ends_well(command, [*plain, f"{key}={value}"])
            except Exception as error:
                wrong.append(f"{key}={value}: {type(error).__name__}: {error}")
    assert wrong == []
