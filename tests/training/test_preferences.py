"""Which choices follow from answers, and that ratings are never taken for those of other pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.test_rating import rated
from tests.training.rated_pictures import MODELS, PROMPTS, make_rated
from textcraftor.errors import UsageError
from textcraftor.evaluation.choosing import pair_units
from textcraftor.evaluation.picture_sets import read_sets
from textcraftor.evaluation.rating import FILE, Unit, add, so_far
from textcraftor.training.preferences import choices_of, read_preferences
from textcraftor.training.train_reward import check


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two folders of 24 pictures each, and ann's answers about all 24 pairs."""
    folder = tmp_path_factory.mktemp("rated")
    make_rated(folder)
    return folder


def keys(folder: Path, *more: str) -> list[str]:
    """Of `train-reward`; what is given more replaces the usual."""
    usual = [f"ratings=[{folder / FILE}]", *(f"models.{name}={folder / name}" for name in MODELS)]
    given = {key.partition("=")[0] for key in more}
    return [*(key for key in usual if key.partition("=")[0] not in given), *more]


def answered(place: Path, copy: Path, *answers) -> Path:
    """A copy of the rated folders in which more was answered."""
    shutil.copytree(place, copy)
    ratings = so_far(copy / FILE)
    for one in answers:
        add(copy / FILE, ratings, one)
    return copy


def test_answers_become_choices(configure, place, tmp_path):
    """Of several raters; a tie is half a win, a skip and what was taken back are none, whichever side was left."""
    units = pair_units(read_sets({name: str(place / name) for name in MODELS}))
    more = [rated(units[0], "tie", "ben"), rated(units[1], "skip", "ben"), rated(units[2], "left", "ben")]
    copy = answered(place, tmp_path / "copy", *more, rated(units[2], "undo", "ben"))
    both = read_preferences(configure("train-reward", *keys(copy)))
    assert len(both.choices) == 25
    assert both.choices.outcomes[-1] == 0.5
    pictures = both.pictures
    for first, second, outcome in zip(both.choices.first, both.choices.second, both.choices.outcomes, strict=True):
        (prompt, one), (other_prompt, other) = pictures[first], pictures[second]
        assert prompt == other_prompt
        assert (one.parent.name, other.parent.name) == MODELS
        assert one.name == other.name
        assert outcome in (0, 0.5, 1)
    assert len(read_preferences(configure("train-reward", *keys(copy, "raters=[ann]"))).choices) == 24
    turned = [rated(Unit(one.prompt, one.seed, one.models[::-1]), "left") for one in units]
    assert [outcome for _, _, outcome in choices_of(turned)] == [0.0] * 24


def test_grades_of_one_person_on_one_prompt_are_choices_too(configure, place, tmp_path):
    """Each two of them; grades of two people, and on two prompts, are not compared."""
    grades = [
        rated(Unit(prompt, seed, (model,)), grade, rater, "quality")
        for prompt, rater in zip(PROMPTS, ["ann", "ben"] * 6, strict=True)
        for model, seed, grade in (("base", 0, 3), ("base", 1, 8), ("tuned", 0, 8))
    ]
    copy = answered(place, tmp_path / "copy", *grades, rated(Unit(PROMPTS[0], 1, ("tuned",)), "skip", "ann", "quality"))
    choices = read_preferences(configure("train-reward", *keys(copy, "question=quality"))).choices
    assert sorted(choices.outcomes) == [0.0] * 24 + [0.5] * 12
    assert len(np.unique(choices.prompts)) == 12


def test_a_folder_that_moved_is_known_again_and_another_is_not(configure, place, tmp_path):
    moved = shutil.copytree(place / "base", tmp_path / "elsewhere")
    config = configure("train-reward", *keys(place, f"models.base={moved}"))
    assert (
        read_preferences(config).choices.outcomes
        == read_preferences(configure("train-reward", *keys(place))).choices.outcomes
    ).all()
    other = shutil.copytree(place / "base", tmp_path / "other")
    shutil.copy(other / "0_0.png", other / "0_1.png")
    with pytest.raises(
        UsageError, match=r"models.base=.*other holds other pictures than those that were rated as base"
    ):
        check(configure("train-reward", *keys(place, f"models.base={other}")), tmp_path / "none")


def test_what_cannot_be_learned_from_is_refused(configure, place, tmp_path):
    few = shutil.copytree(place, tmp_path / "few")
    (few / FILE).write_text("".join((few / FILE).read_text().splitlines(keepends=True)[:10]))
    raters = [rated(pair_units(read_sets({n: str(place / n) for n in MODELS}))[0], "left", f"r{i}") for i in range(12)]
    one_prompt = answered(place, tmp_path / "one", *raters)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(place / "base" / "0_0.png", alone)
    (alone / "metadata.jsonl").write_text((place / "base" / "metadata.jsonl").read_text().splitlines()[0])
    stranger = tmp_path / "stranger.jsonl"
    stranger.write_text((place / FILE).read_text().replace('"seed": 1', '"seed": 7'))
    both = answered(place, tmp_path / "both", rated(Unit(PROMPTS[0], 0, ("base",)), 3, question="quality"))
    names = ",".join(f"r{i}" for i in range(12))
    for given, words in (
        ([], r"ratings=\[\]: name what textcraftor rate wrote, as ratings/ratings.jsonl"),
        (["ratings=[nowhere.jsonl]"], "nowhere.jsonl cannot be read: No such file"),
        (
            [f"ratings=[{place / FILE}]"],
            "models.base is needed: give the folder of the pictures that were rated as base",
        ),
        (keys(place, f"models.base={alone}"), "holds one picture only"),
        (keys(place, "models.best=x"), "models.best was not rated; the file has base, tuned"),
        (keys(few), "9 choices, ties among them, are too few to learn from: rate at least 10 pairs"),
        (keys(place, "raters=[]"), "0 choices, ties among them, are too few"),
        (keys(one_prompt, f"raters=[{names}]"), "all choices are on one prompt, so that none can be held out"),
        (keys(place, "raters=[bob]"), "raters=bob did not answer prefer; ann did"),
        (keys(place, "question=style"), "question=style has no answers; those that have some: prefer"),
        (keys(both), "question is needed: the ratings answer prefer, quality: choose one by question="),
        (keys(place, f"ratings=[{stranger}]"), "models.base has no picture of the rated prompt 'a .*' with the seed 7"),
        (keys(place, "clip=./nowhere"), "clip=./nowhere does not exist"),
        (keys(place, "layout=hpsv2"), "layout=hpsv2 must be aesthetic or pickscore"),
        (keys(place, "folds=1"), "folds=1 must be at least 2"),
    ):
        with pytest.raises(UsageError, match=words):
            check(configure("train-reward", *given), tmp_path / "none")
