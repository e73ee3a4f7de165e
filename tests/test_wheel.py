"""The wheel: built, installed elsewhere, run from any folder; it carries configurations and weights."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

from tests.conftest import QUICK
from textcraftor.cli import config_dir


def test_the_wheel_trains_from_any_folder(tmp_path):
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
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    # The extracted wheel comes before the checkout on the path, so this is the wheel's code and configuration.
    code = f"import textcraftor.cli as cli; assert cli.__file__.startswith({str(site)!r}), cli.__file__; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *QUICK, "training.steps=1", "rewards=aesthetic", "name=w"],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "runs" / "w" / "report.html").exists()
