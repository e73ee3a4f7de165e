"""The app in a real browser: a slider moves, the picture changes, nothing fails, nothing leaves the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import zipfile
from pathlib import Path

import pytest
import torch

from tests.browser import OPENER, assert_nothing_fails_or_leaves, new_page, opened_browser, wait_for
from tests.conftest import PROMPTS, load
from tests.inference.test_mix import LORA, make_run
from textcraftor.config.fields import MOST_SEED
from textcraftor.errors import UsageError
from textcraftor.inference.app import Studio, check, names_of, seed_of
from textcraftor.inference.hosting import free_port, friendly
from textcraftor.inference.mix import Mix

SMALL = ("sampling.steps=3", "rewards=aesthetic", "device=cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    made = make_run(folder / "bold", 1, {"text_encoder": None}), make_run(folder / "soft", 2, {"text_encoder": LORA})
    return [str(run) for run in made]


@pytest.fixture(scope="module")
def app(runs, tmp_path_factory):
    """The address of the running command; what it wrote for its visitors goes when it ends."""
    port = free_port("127.0.0.1", 0)
    command = [Path(sys.executable).with_name("textcraftor"), "app", *SMALL, f"port={port}", *runs]
    scratch = tmp_path_factory.mktemp("scratch")
    process = subprocess.Popen(
        command,
        cwd=tmp_path_factory.mktemp("here"),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(scratch)},
    )
    address = f"http://127.0.0.1:{port}/"

    def check_alive() -> None:
        assert process.poll() is None, process.stderr.read()

    try:
        wait_for(address, check_alive)
        yield address
        assert list(scratch.glob("textcraftor-*")), "nothing was written: that nothing is left proves nothing"
        process.terminate()
        process.communicate(timeout=60)
        assert list(scratch.glob("textcraftor-*")) == []
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def page(app):
    with opened_browser() as browser:
        page = new_page(browser)
        page.goto(app)
        page.wait_for_selector("#after img", timeout=60_000)
        yield page


def test_a_slider_changes_the_picture_and_nothing_fails(app, page):
    def source(name: str) -> str:
        return page.get_attribute(f"#{name} img", "src")

    before, after = source("before"), source("after")
    page.locator("#weight-bold input[type=range]").focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("old => document.querySelector('#after img').src !== old", arg=after, timeout=60_000)
    assert source("before") == before, "the original's picture has nothing to do with the slider"
    assert "aesthetic" in page.inner_text("#scores table"), "a table with the difference"
    assert "difference" in page.inner_text("#scores table")
    page.click("#dial")
    page.wait_for_function("() => document.querySelectorAll('#strip img').length === 5", timeout=60_000)
    assert page.locator("#scores-strip tr").first.locator("th").count() == 6, "a column of scores a picture"
    page.click("#take")
    page.wait_for_selector("#taken a", timeout=60_000)
    assert_nothing_fails_or_leaves(page, app)


def test_only_its_own_outputs_are_served_and_only_here(app, runs):
    for path in ("/etc/passwd", str(Path(runs[0]) / "run.json"), "pyproject.toml"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            OPENER.open(f"{app}gradio_api/file={path}")
        assert refused.value.code in (403, 404)
        refused.value.close()


def test_the_download_is_the_mix_as_one_encoder(configure, runs, tmp_path):
    studio = Studio.load(configure("app", *SMALL, f"runs=[{','.join(runs)}]"), tmp_path)
    with zipfile.ZipFile(studio.download(3, 0.5, 0.25)) as taken:
        taken.extractall(tmp_path / "taken")
    folder, model = tmp_path / "taken" / "mix", load()
    assert json.loads((folder / "mix.json").read_text())["weights"] == {"original": 0.25, "bold": 0.5, "soft": 0.25}
    merged = Mix(names_of(runs), {"bold": 0.5, "soft": 0.25}, merge=True).schedule(model)
    again = Mix({"x": folder}).schedule(model)
    with torch.no_grad():
        ours, theirs = (model.encode(PROMPTS, PROMPTS, one.encoders[0]).prompt.mixed for one in (again, merged))
    torch.testing.assert_close(dict(ours), dict(theirs), rtol=0, atol=1e-6)
    assert again.early == again.late, "all steps"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (("", 0, 3, 1.0, 0.0), "the prompt is empty"),
        (("a red circle" * 200, 0, 3, 1.0, 0.0), "the prompt has 2,400 characters; it may have 2,000"),
        (("a red circle", None, 3, 1.0, 0.0), "seed=None must be a whole number from 0 on"),
        (("a red circle", 1e30, 3, 1.0, 0.0), r"seed=1e\+30 must be a whole number from 0 on"),
        (("a red circle", -1, 3, 1.0, 0.0), "seed=-1 must be a whole number from 0 on"),
        (("a red circle", 2**64, 3, 1.0, 0.0), "seed=18446744073709551616 must be .* at most 18446744073709551615"),
        (("a red circle", 0, 99, 1.0, 0.0), "the mix in the last 99 steps: must lie between 1 and 3"),
        (("a red circle", 0, 3, float("nan"), 0.0), "bold=nan must be a number between -10 and 10"),
        (("a red elephant", 0, 3, 1.0, 0.0), "does not know elephant"),
    ],
)
def test_whatever_a_visitor_sends_is_answered_on_the_page(configure, runs, tmp_path, sent, said, capsys):
    """In one line, and nothing on the console."""
    import gradio

    studio = Studio.load(configure("app", *SMALL, f"runs=[{','.join(runs)}]"), tmp_path)
    show = friendly(studio.pair)
    capsys.readouterr()
    with pytest.raises(gradio.Error, match=said) as refused:
        show(*sent)
    assert not refused.value.print_exception
    assert capsys.readouterr() == ("", "")


def test_a_seed_of_64_bits_means_itself(configure, runs, tmp_path):
    """Text, for a number of the page has 53 bits: beyond them every second seed was its neighbour."""
    assert [seed_of(text) for text in ("0", " 7 ", str(2**53 + 1), str(MOST_SEED))] == [0, 7, 2**53 + 1, MOST_SEED]
    studio = Studio.load(configure("app", *SMALL, f"runs=[{','.join(runs)}]"), tmp_path)
    for text in ("", "-1", "1.5", "1e3", "seed", str(2**64), "9" * 500):
        with pytest.raises(UsageError, match=r"seed=.* must be a whole number from 0 on, at most 18446744073709551615"):
            studio.check("a red circle", seed_of(text), 3, [1.0, 0.0])
    with pytest.raises(UsageError, match="must be a whole number"):
        studio.check("a red circle", 10**400, 3, [1.0, 0.0])


def test_a_visitors_sampling_is_used_and_stands_in_the_picture(configure, runs, tmp_path):
    """In the picture's own text, which the page writes into the PNG; nonsense is refused in one line."""
    studio = Studio.load(configure("app", *SMALL, f"runs=[{','.join(runs)}]"), tmp_path)
    before, after, scores = studio.sampled("a blue star", 2, 1.5).pair("a red circle", 7, 3, 1.0, 0.0)
    assert (before.info["mix"], after.info["seed"], after.info["steps"]) == ("original", "7", "2")
    assert (after.info["negative_prompt"], after.info["guidance_scale"]) == ("a blue star", "1.5")
    assert scores.count("<tr>") == 1 + len(studio.rewards.scorers)
    other = studio.pair("a red circle", 7, 3, 1.0, 0.0)
    assert other[0].tobytes() != before.tobytes(), "the untuned picture of another sampler is another one"
    for sent, said in ((("", 0, 3), "steps=0"), (("", 3, float("nan")), "guidance=nan"), (("x" * 2001, 3, 3), "2,001")):
        with pytest.raises(UsageError, match=said):
            studio.sampled(*sent)


def test_downloads_have_names_of_their_own_and_old_ones_go(configure, runs, tmp_path):
    studio = Studio.load(configure("app", *SMALL, f"runs=[{','.join(runs)}]"), tmp_path)
    files = [studio.download(3, weight, 0.0) for weight in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    assert len(set(files)) == 6
    assert [Path(file).exists() for file in files] == [False, False, True, True, True, True]


def test_what_cannot_be_shown_is_refused(configure, runs, tmp_path):
    with pytest.raises(UsageError, match="name at least one finished run"):
        check(configure("app"), tmp_path)
    with pytest.raises(UsageError, match=r"nowhere holds no run.json"):
        check(configure("app", "runs=[nowhere]"), tmp_path)
    both = [make_run(tmp_path / name, 7, {"text_encoder": None, "denoiser": LORA}) for name in ("one", "two")]
    with pytest.raises(UsageError, match=r"one and two each tuned a denoiser: choose one with denoiser.path"):
        check(configure("app", f"runs=[{both[0]},{both[1]}]"), tmp_path)
    check(configure("app", f"runs=[{both[0]},{both[1]}]", f"denoiser.path={both[1]}", "port=0"), tmp_path)
    with pytest.raises(UsageError, match="port=70000 must be at most 65535"):
        check(configure("app", f"runs=[{runs[0]}]", "port=70000"), tmp_path)
