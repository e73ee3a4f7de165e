"""What raters see and what is kept of their answers: nothing is lost, nothing is taken for something else."""

from __future__ import annotations

import errno
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from textcraftor.errors import UsageError
from textcraftor.evaluation.choosing import Choice, pair_units, single_units
from textcraftor.evaluation.picture_sets import PictureSet, read_sets
from textcraftor.evaluation.rating import Rating, Ratings, Unit, add, begin, merged, read_ratings
from textcraftor.files import writing

PROMPTS = ("a red circle", "a blue star", "a pink cross")
QUESTIONS = {"prefer": "Which do you prefer?", "quality": "How good is it?"}


def make_pictures(folder: Path, shade: int, prompts: tuple[str, ...] = PROMPTS, seeds: tuple[int, ...] = (0, 1)) -> str:
    """A folder as `generate` writes it, of one shade of grey."""
    folder.mkdir(parents=True)
    lines = []
    for number, prompt in enumerate(prompts):
        for seed in seeds:
            info = PngInfo()
            info.add_itxt("settings", "tuned.a=runs/a")
            Image.new("RGB", (64, 64), (shade, 40 * number, 40 * seed)).save(
                folder / f"{number}_{seed}.png", pnginfo=info
            )
            lines.append(json.dumps({"file_name": f"{number}_{seed}.png", "caption": prompt, "seed": seed}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return str(folder)


@pytest.fixture
def sets(tmp_path) -> dict[str, PictureSet]:
    return read_sets(
        {name: make_pictures(tmp_path / name, shade) for shade, name in enumerate(("base", "tuned", "new"))}
    )


def begun(sets: dict[str, PictureSet], file: Path) -> Ratings:
    return begin(file, {name: one.fingerprint for name, one in sets.items()}, QUESTIONS)


def rated(unit: Unit, answer: str | int, rater: str = "ann", question: str = "prefer", number: int = 0) -> Rating:
    return Rating(
        f"2026-01-01T00:00:00.{number:06d}+00:00", rater, question, unit.prompt, unit.seed, unit.models, answer
    )


def test_a_file_gives_back_what_was_kept(sets, tmp_path):
    """Turned pairs, ties, skips, grades; an answer that was taken back counts no more, and can be given again."""
    file, units, singles = tmp_path / "r.jsonl", pair_units(sets), single_units(sets)
    ratings = begun(sets, file)
    turned = Unit(units[0].prompt, units[0].seed, units[0].models[::-1])
    lines = [rated(units[0], "left"), rated(units[0], "undo"), rated(turned, "left"), rated(units[1], "tie")]
    lines += [rated(units[2], "skip"), rated(singles[0], 10, question="quality"), rated(units[1], "right", "ben")]
    for one in lines:
        add(file, ratings, one)
    again = read_ratings(file)
    assert again.lines == ratings.lines == lines
    standing = again.standing("prefer")
    assert {unit: one.answer for unit, one in standing["ann"].items()} == dict(
        zip(units, ["left", "tie", "skip"], strict=False)
    )
    assert [standing["ann"][unit].score for unit in units[:2]] == [0.0, 0.5], "of the first by name, who was right"
    assert standing["ben"][units[1]].score == 0.0
    assert again.standing("quality")["ann"][singles[0]].score == 10.0


@pytest.mark.parametrize("cut", [1, 30, -1])
def test_a_line_that_a_kill_cut_short_is_mended_and_the_others_stay(sets, tmp_path, cut):
    file, units = tmp_path / "r.jsonl", pair_units(sets)
    ratings = begun(sets, file)
    add(file, ratings, rated(units[0], "left"))
    whole = file.read_bytes()
    add(file, ratings, rated(units[1], "right"))
    file.write_bytes(file.read_bytes()[: len(whole) + cut] if cut > 0 else file.read_bytes()[:cut])
    assert len(read_ratings(file).lines) == 1, "also for who only reads"
    ratings = begun(sets, file)
    assert file.read_bytes() == whole
    add(file, ratings, rated(units[2], "tie"))
    assert [one.answer for one in read_ratings(file).lines] == ["left", "tie"]


def test_models_and_questions_are_added_to_a_file_but_not_changed(sets, tmp_path):
    file = tmp_path / "r.jsonl"
    begin(file, {"base": sets["base"].fingerprint}, {})
    begun(sets, file)
    before = file.read_bytes()
    begun(sets, file)
    assert file.read_bytes() == before
    assert set(read_ratings(file).models) == set(sets)
    with pytest.raises(UsageError, match=r"r.jsonl holds ratings of other pictures by the name base"):
        begin(file, {"base": sets["new"].fingerprint}, QUESTIONS)
    with pytest.raises(UsageError, match=r"asks by the name prefer: Which do you prefer\?: choose another name"):
        begin(file, {}, {"prefer": "Which is worse?"})
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": "both"}, "answer=both must be one of left, tie, right, skip, undo"),
        ({"answer": 7}, "answer=7 must be one of left"),
        ({"answer": None}, "answer=None must be of the type str"),
        ({"answer": True}, "answer=True must be of the type int"),
        ({"question": "taste"}, "question=taste is none of prefer, quality"),
        ({"left": "x"}, "x and tuned must be of base, tuned, new, two different ones for a pair"),
        ({"left": "tuned"}, "tuned and tuned must be of"),
        ({"seed": -1}, "seed=-1 must lie between 0"),
        ({"seed": "0"}, "seed=0 must be of the type int"),
        ({"rater": ""}, "rater must have 1 to 60 plain characters"),
        ({"prompt": "\ud800"}, "a text holds half a sign"),
    ],
)
def test_a_broken_line_is_named(sets, tmp_path, change, words):
    file = tmp_path / "r.jsonl"
    add(file, begun(sets, file), rated(Unit("a red circle", 0, ("base", "tuned")), "left"))
    head, line = file.read_text().splitlines()
    file.write_text(f"{head}\n{json.dumps(json.loads(line) | change)}\n{line}\n")
    with pytest.raises(UsageError, match=f"r.jsonl, line 2: {words}"):
        read_ratings(file)
    file.write_text(f"{head}\n{line}\n{{broken\n{line}\n")
    with pytest.raises(UsageError, match=r"r.jsonl, line 3 cannot be read as JSON"):
        read_ratings(file)


def test_copies_count_once_and_other_pictures_are_refused(sets, tmp_path):
    first, units = tmp_path / "a.jsonl", pair_units(sets)
    ratings = begun(sets, first)
    for number in range(3):
        add(first, ratings, rated(units[number], "left", number=number))
    copy = tmp_path / "b.jsonl"
    copy.write_bytes(first.read_bytes())
    add(copy, read_ratings(copy), rated(units[2], "undo", number=3))
    both = merged({"a": read_ratings(copy), "b": read_ratings(first)})
    assert len(both.standing("prefer")["ann"]) == 2
    other = tmp_path / "c.jsonl"
    begin(other, {"base": sets["tuned"].fingerprint}, {})
    with pytest.raises(UsageError, match="c holds ratings of other pictures by the name base"):
        merged({"a": read_ratings(first), "c": read_ratings(other)})


def test_a_fingerprint_is_of_the_pictures_whatever_the_folder(tmp_path):
    first = PictureSet.read("a", Path(make_pictures(tmp_path / "a", 1)))
    again = PictureSet.read("b", Path(make_pictures(tmp_path / "b", 1)))
    assert first.fingerprint == again.fingerprint
    Image.new("RGB", (64, 64)).save(tmp_path / "b" / "0_0.png")
    assert PictureSet.read("b", tmp_path / "b").fingerprint != first.fingerprint
    with pytest.raises(UsageError, match=r"models.a and models.c hold the same pictures"):
        read_sets({"a": str(tmp_path / "a"), "c": make_pictures(tmp_path / "c", 1)})


def test_folders_without_pairs_are_refused(tmp_path):
    one = make_pictures(tmp_path / "one", 1, PROMPTS[:1], (0,))
    with pytest.raises(UsageError, match=r"models.a=.*one holds one picture only"):
        read_sets({"a": one})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"models.a=.*empty holds neither metadata.jsonl nor rows.parquet"):
        read_sets({"a": str(tmp_path / "empty")})
    with pytest.raises(UsageError, match=r"models.a=nowhere is no folder"):
        read_sets({"a": "nowhere"})
    base = make_pictures(tmp_path / "base", 2)
    with pytest.raises(UsageError, match="a pair needs two models"):
        pair_units(read_sets({"a": base}))
    far = make_pictures(tmp_path / "far", 3, seeds=(7, 8))
    with pytest.raises(UsageError, match=r"models.a shares no prompt and seed with another model"):
        pair_units(read_sets({"a": base, "b": far}))
    rows = Path(base) / "metadata.jsonl"
    rows.write_text(rows.read_text() + '{"file_name": "1_0.png", "caption": "a red circle", "seed": 0}\n')
    with pytest.raises(
        UsageError, match=r"0_0.png and 1_0.png show the same prompt with the same seed, as a grid's do"
    ):
        read_sets({"a": base})
    for line, words in (
        ('"file_name": "0_0.png", "caption": "a red circle", "seed": -1', "seed=-1 of 0_0.png must lie between 0"),
        ('"file_name": "0_0.png", "caption": "a red circle"', "metadata.jsonl, line 2 must have seed"),
        (
            '"file_name": "../../x/gone.png", "caption": "a star", "seed": 5',
            "base/gone.png cannot be read: No such file",
        ),
    ):
        rows.write_text('{"file_name": "1_0.png", "caption": "a blue star", "seed": 0}\n{' + line + "}\n")
        with pytest.raises(UsageError, match=words):
            read_sets({"a": base})


def test_every_pair_is_asked_once_in_an_order_and_on_sides_that_the_seed_decides(sets):
    """The same after every start; other raters see another order and other sides, but the same pairs first."""
    units, choice = pair_units(sets), Choice("random", 4, 0)
    assert len(units) == 3 * len(PROMPTS) * 2
    orders = {rater: choice.order(units, "prefer", rater) for rater in ("ann", "ben")}
    assert Counter(orders["ann"]) == Counter(units)
    assert orders["ann"] == Choice("random", 4, 0).order(units, "prefer", "ann")
    assert orders["ann"] != orders["ben"] != Choice("random", 4, 1).order(units, "prefer", "ben")
    assert {*orders["ann"][:4]} == {*orders["ben"][:4]}
    sides = [[choice.sides(unit, "prefer", rater) for unit in units] for rater in ("ann", "ben")]
    assert sides[0] != sides[1]
    turned = sum(shown == unit.models[::-1] for shown, unit in zip(sides[0], units, strict=True))
    assert 3 < turned < 15


def test_the_active_choice_asks_about_the_models_that_are_least_told_apart(sets):
    """Of three models one always loses; the two others have met seldom. Random order knows nothing of it."""
    units, ratings = pair_units(sets), Ratings()
    for number, unit in enumerate(unit for unit in units if "base" in unit.models):
        ratings.lines.append(rated(unit, "right" if unit.models[0] == "base" else "left", "ben", number=number))
    active = Choice("active", 0, 0)
    asked = []
    for _ in range(6):
        asked.append(active.next(units, "prefer", "ann", ratings))
        ratings.lines.append(rated(asked[-1], "tie"))
    assert {unit.models for unit in asked[:3]} == {("new", "tuned")}
    assert len({*asked}) == 6
    for unit in units:
        ratings.lines.append(rated(unit, "tie"))
    assert active.next(units, "prefer", "ann", ratings) is None
    order = Choice("random", 0, 0).order(units, "prefer", "ann")
    assert {unit.models for unit in order[:3]} != {("new", "tuned")}


def test_a_disk_that_is_full_leaves_no_half_of_an_answer(sets, tmp_path, monkeypatch):
    """Neither in the file, where the next answer would follow it, nor in what counts."""
    file, units = tmp_path / "r.jsonl", pair_units(sets)
    ratings = begun(sets, file)

    def full(point: str, _: Path) -> None:
        if point == "half":
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(writing, "passed", full)
        with pytest.raises(OSError, match="No space"):
            add(file, ratings, rated(units[0], "left"))
    assert ratings.lines == []
    add(file, ratings, rated(units[1], "tie"))
    assert [one.answer for one in read_ratings(file).lines] == ["tie"]
