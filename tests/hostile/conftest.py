"""A finished run to damage, and the real command within this process."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import QUICK
from textcraftor.cli import call, main

LINES = (
    *QUICK,
    "rewards=aesthetic",
    "sampling.steps=2",
    "gradient.k=1",
    "training.steps=1",
    "evaluation.prompts=2",
    "watch.seeds=[0]",
)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """What the command said of its failure; there must be one line and no traceback."""
        assert "Traceback" not in self.err, self.err
        said = [line for line in self.err.splitlines() if line.startswith("textcraftor: ")]
        assert len(said) == 1, self.err
        return said[0].removeprefix("textcraftor: ")


def command(*arguments: str) -> Ended:
    """`textcraftor ...` in this process."""
    out, err, before = io.StringIO(), io.StringIO(), (sys.argv, [*sys.path])
    sys.argv, code = ["textcraftor", *arguments], 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.argv, sys.path[:] = before
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A finished run of a whole text encoder and of adapters for the denoiser."""
    folder = tmp_path_factory.mktemp("hostile") / "run"
    tune = ["tune=both", "tune.denoiser.lora={rank: 2, alpha: 2.0, target_modules: auto, layers: null}"]
    return call("train", [*LINES, *tune, "tracker=null", f"run_dir={folder}"])


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory) -> Path:
    """A finished run of adapters for the text encoder."""
    folder = tmp_path_factory.mktemp("hostile") / "lora"
    return call("train", [*LINES, "tune=text_encoder_lora", "tracker=null", f"run_dir={folder}"])


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory) -> Path:
    """A finished evaluation of the untuned model."""
    folder = tmp_path_factory.mktemp("hostile") / "evaluation"
    keys = ["suite=toybox", "limit=1", "seeds=[0,1]", "sampling.steps=2", "rewards=aesthetic", "device=cpu"]
    return call("evaluate", [*keys, f"run_dir={folder}"])


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder with a secret beside it."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("s3cr3t")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_TOKEN", "s3cr3t")
    return tmp_path / "here"


def copied(source: Path, place: Path) -> Path:
    """A copy of a folder to damage; checkpoints, which are large, are shared with the source."""

    def copy(file: str, twin: str) -> None:
        (os.link if file.endswith(".pt") else shutil.copyfile)(file, twin)

    return Path(shutil.copytree(source, place, symlinks=True, copy_function=copy))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.suffix != ".pt"
    }
