"""`textcraftor ratings`: from the answers of simulated raters to strengths, agreement and a report in one file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from tests.evaluation.test_rating import make_pictures, rated
from textcraftor.errors import UsageError
from textcraftor.evaluation.choosing import pair_units, single_units
from textcraftor.evaluation.picture_sets import read_sets
from textcraftor.evaluation.rating import FILE, Rating, add, begin
from textcraftor.evaluation.ratings import check, run

PROMPTS = tuple(f"<{number}> & a star" for number in range(12))
STRENGTHS = {"base": 0.0, "tuned": 1.5, "third": 0.5}
QUESTIONS = {"prefer": "Which do you prefer?", "quality": "How good is it?", "style": "Which has the better style?"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("pictures")
    return {name: make_pictures(place / name, shade, PROMPTS) for shade, name in enumerate(STRENGTHS)}


@pytest.fixture(scope="module")
def sets(folders):
    return read_sets(folders)


def written(file: Path, sets, ratings: list[Rating]) -> str:
    """A file of answers."""
    kept = begin(file, {name: one.fingerprint for name, one in sets.items()}, QUESTIONS)
    for one in ratings:
        add(file, kept, one)
    return str(file)


def simulated(sets, raters: tuple[str, ...], count: int = 40) -> list[Rating]:
    """Raters who prefer by the strengths, and one who prefers the worse."""
    rng, answers = np.random.default_rng(0), []
    units = pair_units(sets)
    for unit in (units[place] for place in rng.permutation(len(units))[:count]):
        better = rng.random() < expit(STRENGTHS[unit.models[0]] - STRENGTHS[unit.models[1]])
        for rater in raters:
            first = better ^ (rng.random() < 0.1) ^ (rater == "troll")
            answers.append(rated(unit, "tie" if rng.random() < 0.1 else "left" if first else "right", rater))
    return answers


def summary(folder: Path) -> dict:
    return json.loads((folder / "ratings.json").read_text())["questions"]


def test_a_report_says_who_is_preferred_and_whom_to_doubt(configure, sets, folders, tmp_path):
    grades = [
        rated(unit, int(5 + 2 * STRENGTHS[unit.models[0]] + len(rater) - 3), rater, "quality")
        for unit in single_units(sets)
        for rater in ("ann", "bent")
    ]
    answers = simulated(sets, ("ann", "ben", "cleo", "troll")) + grades
    file = written(tmp_path / FILE, sets, answers)
    models = [f"models.{name}={folder}" for name, folder in folders.items()]
    said = run(configure("ratings", f"files=[{tmp_path}]", *models), tmp_path / "out")
    found = summary(tmp_path / "out")
    assert list(found) == ["prefer", "quality"]
    prefer, quality = found["prefer"], found["quality"]
    elo = {name: one["elo"] for name, one in prefer["models"].items()}
    assert sorted(elo, key=elo.get) == ["base", "third", "tuned"]
    assert sum(elo.values()) == pytest.approx(0)
    assert sum(pair["votes"] for pair in prefer["pairs"]) == prefer["answers"] == 160
    outliers = [name for name, one in prefer["agreement"]["raters"].items() if one["outlier"]]
    assert outliers == ["troll"]
    assert quality["grades"]["tuned"]["mean"] == pytest.approx(8.5)
    assert quality["grades"]["tuned"]["n"] == len(PROMPTS)
    difference = next(one for one in quality["differences"] if (one["first"], one["second"]) == ("base", "tuned"))
    assert difference["mean"] == pytest.approx(-3)
    assert said == f"wrote {tmp_path / 'out'}\n\n{(tmp_path / 'out' / 'table.md').read_text()}"
    assert f"| tuned | {elo['tuned']:+.0f} |" in said
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count("<img") > 12
    assert not re.search(r"(src|href)=\"(?!data:)", html), "the report is one file"
    assert "&lt;3&gt; &amp; a star" in html
    assert "<3>" not in html
    again = run(configure("ratings", f"files=[{file}]", "questions=[prefer]"), tmp_path / "again")
    assert "quality" not in again
    assert "<img" not in (tmp_path / "again" / "report.html").read_text()
    with pytest.raises(UsageError, match="already holds what follows from ratings"):
        check(configure("ratings", f"files=[{file}]"), tmp_path / "out")


def test_few_answers_give_what_they_can_and_no_more(configure, sets, tmp_path):
    """A single rater, a model never chosen, one without a vote, a question with nothing but skips."""
    units = [unit for unit in pair_units(sets) if unit.models == ("base", "tuned")]
    answers = [rated(unit, "right") for unit in units[:5]] + [
        rated(units[5], "skip"),
        rated(units[0], "skip", question="style"),
    ]
    file = written(tmp_path / FILE, sets, answers)
    run(configure("ratings", f"files=[{file}]"), tmp_path / "out")
    found = summary(tmp_path / "out")
    prefer = found["prefer"]
    assert prefer["models"]["base"]["elo"] == pytest.approx(-200 * np.log10(5.5 / 0.5))
    assert prefer["models"]["base"]["over_votes"] == {"low": None, "high": None}
    assert prefer["apart"] == ["third"]
    assert (prefer["answers"], prefer["skipped"]) == (5, 1)
    assert prefer["agreement"]["alpha"] is None
    assert found["style"] == {"question": QUESTIONS["style"], "answers": 0, "skipped": 1, "prompts": 0}


def test_files_of_several_raters_count_together(configure, sets, tmp_path):
    answers = simulated(sets, ("ann", "ben"))
    whole = written(tmp_path / "whole.jsonl", sets, answers)
    parts = [
        written(tmp_path / f"{name}.jsonl", sets, [one for one in answers if one.rater == name])
        for name in ("ann", "ben")
    ]
    run(configure("ratings", f"files=[{whole}]"), tmp_path / "a")
    run(configure("ratings", f"files=[{','.join(parts)}]"), tmp_path / "b")
    assert summary(tmp_path / "a")["prefer"]["wins"] == summary(tmp_path / "b")["prefer"]["wins"]
    assert summary(tmp_path / "a")["prefer"]["agreement"] == summary(tmp_path / "b")["prefer"]["agreement"]


def test_what_does_not_belong_together_is_refused(configure, sets, folders, tmp_path):
    file = written(tmp_path / FILE, sets, simulated(sets, ("ann",), 5))
    begun = written(tmp_path / "begun.jsonl", sets, [])
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"models": {"a": 1}, "questions": {}}\n')
    for keys, words in (
        ([], r"files=\[\]: name what textcraftor rate wrote"),
        (["files=[nowhere.jsonl]"], "nowhere.jsonl cannot be read: No such file"),
        ([f"files=[{file},{file}]"], "names a file twice"),
        ([f"files=[{begun}]"], r"begun.jsonl holds no answers yet"),
        ([f"files=[{tmp_path / 'notes.txt'}]"], "notes.txt holds no ratings: give a file that textcraftor rate wrote"),
        ([f"files=[{tmp_path / 'broken.jsonl'}]"], "broken.jsonl, line 1: models.a=1 must be of the type str"),
        ([f"files=[{file}]", "questions=[taste]"], "questions=taste is an unknown question; the file has prefer"),
        ([f"files=[{file}]", "questions=[style]"], "questions=.* have no answers yet"),
        ([f"files=[{file}]", "models.best=x"], "models.best was not rated; the file has base, tuned, third"),
        (
            [f"files=[{file}]", f"models.base={folders['tuned']}"],
            "holds other pictures than those that were rated as base",
        ),
        ([f"files=[{file}]", "samples=9"], "samples=9 must be at least 100"),
    ):
        with pytest.raises(UsageError, match=words):
            check(configure("ratings", *keys), tmp_path / "none")
