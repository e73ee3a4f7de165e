"""The wheel: built, installed by pip elsewhere, run from any folder; it carries configurations and weights."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

from tests.conftest import QUICK
from textcraftor.cli import config_dir


def test_the_wheel_is_installed_and_trains_from_any_folder(tmp_path):
    root = config_dir().parent
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, root],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    carried = [*(root / "conf").rglob("*.yaml"), *(root / "textcraftor").rglob("*.py")]
    missing = [file.relative_to(root) for file in carried if not any(name.endswith(file.name) for name in names)]
    assert not missing
    assert "textcraftor/conf/model/toybox.yaml" in names
    assert not any(name.startswith(("tests/", "scripts/")) for name in names)
    program, elsewhere = installed(wheel, tmp_path / "environment"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = [program.with_name("python"), "-c", "import textcraftor; print(textcraftor.__file__)"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    imported = subprocess.run(where, cwd=elsewhere, env=clean, capture_output=True, text=True, check=True).stdout
    assert imported.startswith(str(tmp_path)), f"{imported} is not the wheel's"
    done = subprocess.run(
        [program, "train", *QUICK, "training.steps=1", "rewards=aesthetic", "name=w"],
        cwd=elsewhere,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "runs" / "w" / "report.html").exists()


def installed(wheel: Path, environment: Path) -> Path:
    """The command of a wheel that pip installed into an empty environment, which borrows the other packages of this
    one: `make wheel-demo` has pip bring them all."""
    venv.create(environment, with_pip=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--ignore-installed", wheel], check=True, capture_output=True)
    return environment / "bin" / "textcraftor"
