"""Whatever goes wrong ends in one line that says what to do: the disk, a scorer of one's own, two commands at once."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

import textcraftor
from tests.hostile.conftest import LINES, command
from textcraftor.cli import told
from textcraftor.errors import UsageError
from textcraftor.files import writing

SMALL = ["sampling.steps=2", "device=cpu"]
SCORER = """
import torch, sys

def nothing(images, prompts):
    return torch.full((len(images),), float("nan")) + 0 * images.mean((1, 2, 3))

def raises(images, prompts):
    return {}["no such key"]

def leaves(images, prompts):
    sys.exit(0)

def loads():
    sys.exit(0)
"""
COMMANDS = {
    "train": ["train", *LINES, "tracker=null"],
    "generate": ["generate", "prompt=a red circle", *SMALL],
    "letters": ["letters", "count=1"],
    "upsample": ["upsample", "prompts.path=p.txt"],
    "score": ["score", "images=pictures", "prompts.path=p.txt", "rewards=aesthetic"],
    "compare": ["compare", "{run}", "{lora_run}"],
    "export": ["export", "tuned.a={run}", "mix.a=1"],
    "evaluate": ["evaluate", "suite=toybox", "limit=1", "seeds=[0]", "rewards=aesthetic", *SMALL],
}


@pytest.fixture
def place(here) -> Path:
    (here / "p.txt").write_text("a red circle\n")
    (here / "pictures").mkdir()
    Image.new("RGB", (64, 64), "red").save(here / "pictures" / "a.png")
    (here / "mine.py").write_text(SCORER)
    return here


def filled(name: str, request) -> list[str]:
    """A command's arguments with the folders of runs in their places."""
    found = COMMANDS[name]
    for word in ("run", "lora_run"):
        if any(f"{{{word}}}" in one for one in found):
            found = [one.replace(f"{{{word}}}", str(request.getfixturevalue(word))) for one in found]
    return found


def mine(name: str, *more: str) -> list[str]:
    """A run with a scorer of the user's own."""
    keys = [f"+rewards.mine.reward._target_=mine.{name}", "+rewards.mine.weight=1", *more]
    return ["train", *LINES, "tracker=null", "run_dir=out", *keys]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_dir_that_cannot_be_made_is_one_line(name, place, request):
    """A file in its place, a file above it, and a name that no disk takes."""
    (place / "file").write_text("mine")
    for folder, words in (
        ("file", "file.*(exists|it is there already|a part of the path is a file)"),
        ("file/x", "a part of the path is a file"),
        ("x" * 300, "choose a shorter name"),
    ):
        ended = command(*filled(name, request), f"run_dir={folder}")
        assert ended.code == 2, ended
        assert re.search(words, ended.line), ended.line
    assert (place / "file").read_text() == "mine"
    assert {path.name for path in place.iterdir()} == {"p.txt", "pictures", "mine.py", "file"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("name", ["letters", "score", "export", "evaluate"])
def test_a_disk_that_refuses_is_one_line_and_leaves_nothing(name, number, place, request, monkeypatch):
    """At the second file that is written."""
    met, arguments = [], filled(name, request)

    def refuse(point: str, file: Path) -> None:
        met.append(point)
        if point == "begun" and met.count("begun") == 2:
            raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr(writing, "passed", refuse)
    ended = command(*arguments, "run_dir=out")
    assert ended.code == 2, ended
    assert os.strerror(number) in ended.line
    left = [path for path in place.rglob("*") if ".partial" in path.name or ".lock" in path.name]
    assert left == []


def test_libraries_own_words_for_a_full_disk_are_known():
    for said in ("I/O error: No space left on device (os error 28)", "PytorchStreamWriter failed writing file"):
        line, code = told(RuntimeError(said))
        assert (code, "make room" in line) == (2, True)


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        (mine("nothing"), r"rewards.mine scores no picture \\(NaN for all\\): mend it"),
        (mine("raises"), r"rewards.mine failed, see above \\(KeyError: 'no such key'\\): mend it"),
        (mine("leaves"), r"rewards.mine failed, see above \\(SystemExit: 0\\)"),
    ],
)
def test_a_scorer_that_fails_is_named(scorer, words, place):
    scorer = [*scorer, "+rewards.mine.reward._partial_=true"]
    ended = command(*scorer)
    assert ended.code == 2, ended
    last = ended.err.strip().splitlines()[-1]
    assert re.search(words.replace("\\\\", "\\"), last), last
    assert not (place / "out").exists(), "a run that cannot begin leaves nothing"


def test_a_scorer_that_ends_the_program_while_it_loads_is_named(place):
    ended = command(*mine("loads"))
    assert (ended.code, ended.line) == (2, "rewards.mine: mine.loads ends the program: mend it")


def test_what_nobody_foresaw_is_one_line_and_a_file(place, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("textcraftor.data.letters.coverage", lambda *_: {}["lost"])
    ended = command(*COMMANDS["letters"], "run_dir=out")
    assert ended.code == 1
    file = re.fullmatch(r"unforeseen KeyError: 'lost'; the traceback is in (.*)", ended.line)
    assert file is not None, ended.line
    assert "in make" in Path(file[1]).read_text()


def test_ctrl_c_is_one_line(place, monkeypatch):
    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("textcraftor.data.letters.coverage", interrupt)
    ended = command(*COMMANDS["letters"], "run_dir=out")
    assert ended.code == 130
    assert "stopped by Ctrl-C" in ended.line


@pytest.mark.parametrize("name", ["train", "generate", "letters", "compare"])
def test_two_commands_do_not_share_a_folder(name, place, request):
    (place / "out").mkdir()
    with FileLock(place / "out" / ".lock"):
        ended = command(*filled(name, request), "run_dir=out")
    assert ended.code == 2
    assert ended.line == "run_dir=out is in use by another textcraftor: wait for it, or choose another"
    assert [path.name for path in (place / "out").iterdir()] in ([".lock"], [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "dry_run=true", "rewards.clip.weight=nan"], "rewards.clip.weight=nan must be finite"),
        (["train", "resume={run}", "training.steps=abc"], "training.steps=abc must be a whole number"),
        (["train", "resume={run}", "-m"], "-m: resume= goes on with one run"),
        (["train", "resume={run}", "training.steps=[1"], "no viable alternative at input '[1'"),
        (["train", "+resume={run}"], "the run is finished at step 1; raise training.steps"),
        (["train", "resume={run}"], "the run is finished at step 1; raise training.steps"),
        (["train", "resume=."], "resume=. holds no config.yaml"),
        (["generate", "resume={run}"], "unknown key resume"),
        (["generate", "prompt=x", "tuned.original={run}"], "original has a meaning of its own in mix"),
        (["generate", "prompt=x", "tuned.rest={run}"], "rest has a meaning of its own in mix"),
        (["generate", "prompt=x", "switch.timestep=nan"], "switch.timestep=nan must be a whole number"),
        (["generate", "prompt=x", "sampling.guidance_scale=nan"], "sampling.guidance_scale=nan must be finite"),
        (
            ["export", "tuned.a={run}", "mix.a=0", "denoiser.path=original"],
            "the mix 1 original has nothing tuned in it",
        ),
        (["compare", "{run}", "{evaluation}"], "summary.json must have held_out"),
        (["train", "-m", "training.steps=abc,def"], "training.steps=abc must be a whole number"),
        (["train", "model=[1]"], "model=[1] cannot be composed"),
        (["train", "prompts.path=pictures"], "prompts.path=pictures"),
    ],
)
def test_mistakes_that_others_made(arguments, words, place, request):
    for word in ("run", "evaluation"):
        if any(f"{{{word}}}" in one for one in arguments):
            made = str(request.getfixturevalue(word))
            arguments = [one.replace(f"{{{word}}}", made) for one in arguments]
    ended = command(*arguments)
    assert ended.code in (1, 2), ended
    assert "Traceback" not in ended.err
    assert words in ended.err, ended.err
    swept = {"runs"} if "-m" in arguments else set()  # Hydra's own, before any job begins
    assert {path.name for path in place.iterdir()} - swept == {"p.txt", "pictures", "mine.py"}


def test_python_goes_on_with_a_run_too(run, place):
    """And starts no other one."""
    with pytest.raises(UsageError, match=r"the run is finished at step 1; raise training.steps"):
        textcraftor.train(f"resume={run}")


def test_a_refused_prompt_file_leaves_nothing_that_stands_in_the_way(place):
    (place / "strange.txt").write_text("a red elephant\na blue star\na pink cross\na green ring\n")
    refused = command("train", *LINES, "tracker=null", "run_dir=out", "prompts.path=strange.txt")
    assert (refused.code, "does not know elephant" in refused.line) == (2, True)
    assert not (place / "out").exists()
    refused = command("evaluate", "prompts.path=strange.txt", "seeds=[0]", "rewards=aesthetic", *SMALL, "run_dir=out")
    assert (refused.code, "does not know elephant" in refused.line) == (2, True)
    assert not (place / "out").exists()


@pytest.mark.parametrize(("size", "code"), [((3000, 1), 2), ((1, 3000), 2), ((64, 1), 0), ((1, 1), 0)])
def test_pictures_of_any_shape_are_scored(place, size, code):
    """One pixel high or wide, too, by what crops and by what pads; strips that would fill memory are named."""
    picture = Image.fromarray(np.zeros((size[1], size[0], 3), dtype=np.uint8) + 90)
    picture.save(place / "pictures" / "a.png")
    ended = command("score", "images=pictures", "prompts.path=p.txt", "rewards=toybox", "run_dir=out")
    assert ended.code == code, ended
    assert code == 0 or "a.png has" in ended.line
