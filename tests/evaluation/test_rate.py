"""The page in a real browser: raters answer by keys, at once and blind, and nothing is lost by a reload or a kill."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import signal
import socket
from pathlib import Path

import pytest
from PIL import Image

from tests.browser import assert_nothing_fails_or_leaves, new_page, opened_browser, wait_for
from tests.children import start
from tests.evaluation.test_rating import make_pictures
from textcraftor.errors import UsageError
from textcraftor.evaluation.rate import Desk, check
from textcraftor.evaluation.rating import FILE, begin, read_ratings
from textcraftor.inference.hosting import free_port

SHADES = {"quokka": 10, "zebra": 200}  # names that no page says by itself, and the level of red of their pictures


@pytest.fixture
def folders(tmp_path) -> list[str]:
    """Pictures of two models, as keys of the command."""
    return [f"models.{name}={make_pictures(tmp_path / 'pictures' / name, shade)}" for name, shade in SHADES.items()]


@pytest.fixture
def desk(configure, folders, tmp_path) -> Desk:
    """A desk with a file of its own, in a random order."""
    return opened(configure("rate", *folders, "ask=[prefer,quality]", "port=0"), tmp_path)


def opened(config, folder: Path) -> Desk:
    desk = check(config, folder)
    desk.ratings = begin(desk.file, {name: one.fingerprint for name, one in desk.sets.items()}, desk.questions)
    return desk


def models_in(body: str) -> list[str]:
    """Whose pictures a page shows, from left to right, by their pixels."""
    names = {shade: name for name, shade in SHADES.items()}
    pictures = [Image.open(io.BytesIO(base64.b64decode(one))) for one in re.findall(r"base64,([^\"]+)\"", body)]
    assert all(not picture.info for picture in pictures), "what a file says could tell its model"
    return [names[picture.getpixel((0, 0))[0]] for picture in pictures]


def sign_in(page, name: str) -> None:
    """Type a name until the page has heard it: while it loads, no key does anything."""
    from playwright.sync_api import TimeoutError as NotYetError

    for _ in range(60):
        page.locator("#rater :is(input, textarea)").fill(name)
        page.keyboard.press("Enter")
        with contextlib.suppress(NotYetError):
            page.wait_for_selector("#body img", timeout=5000)
            return
    raise AssertionError("the page never showed a pair")


def test_raters_answer_by_keys_and_a_kill_loses_nothing(configure, folders, tmp_path):
    """Two at once, one on a narrow screen; a reload keeps name and place, and the killed command goes on."""
    port = free_port("127.0.0.1", 0)
    keys = ["ask=[prefer,quality]", f"port={port}", "run_dir=kept"]
    address = f"http://127.0.0.1:{port}/"
    child = start(["rate", *folders, *keys], tmp_path)

    def check_alive() -> None:
        assert child.process.is_alive(), child.log.read_text()

    def press(page, key: str, progress: str) -> None:
        page.keyboard.press(key)
        page.wait_for_function("text => document.querySelector('#progress').innerText.includes(text)", arg=progress)

    try:
        wait_for(address, check_alive)
        with opened_browser() as browser:
            ann, ben = new_page(browser), new_page(browser, width=400)
            for page, name in ((ann, "ann"), (ben, "ben")):
                page.goto(address)
                sign_in(page, name)
            shown = []
            for place, key in enumerate(("ArrowLeft", "ArrowRight", "ArrowDown", "s"), 1):
                shown.append(models_in(ann.inner_html("#body")))
                press(ann, key, f"{place} of 6 pairs")
            press(ann, "u", "3 of 6 pairs")
            assert not any(name in ann.content() for name in SHADES), "raters are blind to models"
            assert ben.evaluate("document.documentElement.scrollWidth") <= 400
            assert all(ben.is_visible(f"#{button}") for button in ("left", "tie", "right", "skip", "undo"))
            ben.click("#right")
            ben.wait_for_function("document.querySelector('#progress').innerText.includes('1 of 6')")
            ben.locator("#question input").nth(1).click()
            ben.wait_for_selector("#grades", state="visible")
            press(ben, "0", "1 of 12 pictures")
            ann.reload()
            ann.wait_for_selector("#body img")
            assert ann.input_value("#rater :is(input, textarea)") == "ann"
            assert "3 of 6 pairs" in ann.inner_text("#progress")
            for page in (ann, ben):
                assert_nothing_fails_or_leaves(page, address)
            child.send(signal.SIGKILL)
            child.wait()
    finally:
        child.process.kill()
    lines = read_ratings(tmp_path / "kept" / FILE).lines
    mine = [one for one in lines if one.rater == "ann"]
    assert [one.answer for one in mine] == ["left", "right", "tie", "skip", "undo"]
    assert [list(one.models) for one in mine[:4]] == shown
    assert [(one.question, one.answer) for one in lines if one.rater == "ben"] == [("prefer", "right"), ("quality", 10)]
    again = opened(configure("rate", *folders, *keys), tmp_path / "kept")
    assert "3 of 6" in again.view("ann", "prefer").progress
    assert "1 of 12" in again.view("ben", "quality").progress


def test_each_pair_is_answered_once_whatever_a_page_sends(desk):
    """A second click, a second browser of the same name, a page of another rater or question, and nonsense."""
    view = desk.view("ann", "prefer")
    assert desk.answer("left", "ann", "prefer", view.shown).shown != view.shown
    for shown in (view.shown, "", "7", '["ann", "prefer", 99]', '["ann", "prefer", "0"]', '["ann", "prefer", -1]'):
        desk.answer("right", "ann", "prefer", shown)
    desk.answer("right", "ben", "prefer", view.shown)
    desk.answer(7, "ann", "quality", view.shown)
    assert [one.answer for one in desk.ratings.lines] == ["left"]
    for _ in range(6):
        view = desk.answer("tie", " ann ", "prefer", desk.view("ann", "prefer").shown)
    assert "That was all" in view.body
    assert "6 of 6" in view.progress
    assert len(desk.ratings.standing("prefer")["ann"]) == 6


def test_undo_takes_answers_back_one_after_the_other(desk):
    first = desk.view("ann", "prefer")
    second = desk.answer("left", "ann", "prefer", first.shown)
    desk.answer("skip", "ann", "prefer", second.shown)
    assert desk.undo("ann", "prefer").shown == second.shown
    assert desk.undo("ann", "prefer").shown == first.shown
    with pytest.raises(UsageError, match="there is no answer to take back"):
        desk.undo("ann", "prefer")
    assert len(read_ratings(desk.file).lines) == 4


def test_nobody_answers_without_a_name(desk):
    assert "Type your name" in desk.view("  ", "prefer").body
    with pytest.raises(UsageError, match="type your name first"):
        desk.answer("left", "", "prefer", "")
    with pytest.raises(UsageError, match="must have at most 60 plain characters"):
        desk.view("x" * 61, "prefer")
    with pytest.raises(UsageError, match="choose a question"):
        desk.view("ann", "taste")
    assert json.loads(desk.file.read_text())["questions"]["prefer"] == "Which do you prefer?"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["ask=[prefr]"], r"ask=prefr is an unknown question; did you mean prefer\?"),
        (["ask=[taste]"], "ask=taste is an unknown question; there are prefer, .* or add questions.taste='...'"),
        (["ask=[]"], "ask=.. asks nothing: give some of prefer"),
        (["questions.quality=Which is nicer?"], "questions.quality and grades.quality have the same key: rename one"),
        (["questions.prefer= "], "the question prefer must have a text"),
        (["models.third=nowhere"], "models.third=nowhere is no folder"),
        (["models.zebra=nowhere"], "models.zebra is given twice: give each name once"),
        (["next=best"], "next=best must be random or active"),
        (["host=192.0.2.1"], r"host=192.0.2.1 port=0 cannot serve a page \(.*\): try host=127.0.0.1"),
    ],
)
def test_what_cannot_be_rated_is_refused(configure, folders, tmp_path, keys, words):
    """Before anything is served or written."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=words):
        check(configure("rate", *folders, "port=0", *keys), tmp_path / "kept")
    assert sorted(tmp_path.rglob("*")) == before


def test_one_model_has_no_pairs_but_grades(configure, folders, tmp_path):
    with pytest.raises(UsageError, match="models is needed: give folders by names"):
        check(configure("rate", "port=0"), tmp_path / "kept")
    with pytest.raises(UsageError, match="a pair needs two models"):
        check(configure("rate", folders[0], "port=0"), tmp_path / "kept")
    assert len(check(configure("rate", folders[0], "ask=[quality]", "port=0"), tmp_path / "kept").units["quality"]) == 6


def test_a_port_that_is_taken_and_ratings_of_other_pictures_are_refused(configure, folders, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port={port} is taken: choose another, or port=0 for a free one"):
            check(configure("rate", *folders, f"port={port}"), tmp_path / "kept")
    opened(configure("rate", *folders, "port=0"), tmp_path / "kept")
    base = Path(folders[0].partition("=")[2])
    (base / "0_0.png").write_bytes((base / "0_1.png").read_bytes())
    with pytest.raises(UsageError, match=rf"{FILE} holds ratings of other pictures by the name quokka"):
        check(configure("rate", *folders, "port=0"), tmp_path / "kept")


def test_an_evaluations_folder_has_the_same_pictures(configure, tmp_path):
    """`rows.parquet` and `pictures/` as `evaluate` writes them."""
    import pyarrow
    import pyarrow.parquet

    folders = []
    for name, shade in SHADES.items():
        made = Path(make_pictures(tmp_path / name / "pictures", shade))
        rows = [json.loads(line) for line in (made / "metadata.jsonl").read_text().splitlines()]
        table = [
            {"prompt": row["caption"], "seed": row["seed"], "picture": f"pictures/{row['file_name']}", "total": 1.0}
            for row in rows
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / name / "rows.parquet")
        folders.append(f"models.{name}={tmp_path / name}")
    desk = check(configure("rate", *folders, "port=0"), tmp_path / "kept")
    assert len(desk.units["prefer"]) == 6
    assert sorted(models_in(desk.view("ann", "prefer").body)) == [*SHADES]
