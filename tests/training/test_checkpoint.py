"""Nothing is lost: killed, interrupted, out of disk or damaged, a run goes on exactly where it was."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.children import Child, start
from tests.conftest import QUICK
from textcraftor.config.resume import resumed_config
from textcraftor.errors import UsageError
from textcraftor.training.checkpoint import Checkpoints
from textcraftor.training.checks import check
from textcraftor.training.train import load, run

SETTINGS = (
    *QUICK,
    "training.steps=8",
    "training.checkpoint_every=2",
    "training.ema_decay=0.9",
    "watch.every=3",
    "rewards=aesthetic",
    "tune=both_lora",
    "gradient=random_k",
    "normalize_rewards=true",
)
SETTINGS = tuple(setting for setting in SETTINGS if not setting.startswith("gradient.k"))


def wait_for_step(child: Child, folder: Path, step: int) -> None:
    """Until the run has written that step's figures."""
    file = folder / "metrics.jsonl"
    for _ in range(6000):
        if file.exists() and len(file.read_text().splitlines()) >= step:
            return
        assert child.process.is_alive(), child.log.read_text()
        time.sleep(0.02)
    raise AssertionError(f"step {step} was never reached")


def finish(folder: Path, *overrides: str) -> None:
    run(resumed_config("train", [f"resume={folder}", *overrides]), folder)


def assert_same_run(first: Path, second: Path) -> None:
    """The weights, last and best, and every figure but the seconds and the memory."""
    for part in ("text_encoder_lora", "unet_lora", "last/text_encoder_lora", "last/unet_lora"):
        name = f"{part}/pytorch_lora_weights.safetensors"
        ours, theirs = load_file(first / name), load_file(second / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), part
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (first, second)]
    for one, other in zip(*lines, strict=True):
        assert {k: v for k, v in one.items() if not k.startswith(("seconds", "gb/"))} == {
            k: v for k, v in other.items() if not k.startswith(("seconds", "gb/"))
        }
    summaries = [json.loads((run / "summary.json").read_text()) for run in (first, second)]
    for key in ("before", "after", "difference", "watched", "held_out"):
        assert summaries[0][key] == summaries[1][key], key


@pytest.fixture(scope="module")
def uninterrupted(configure, tmp_path_factory):
    """The folder of a finished run; to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(configure("train", *SETTINGS, f"run_dir={folder}"), folder)
    return folder


def test_a_run_killed_twice_ends_with_the_weights_of_one_that_was_not(uninterrupted, tmp_path):
    """SIGKILL before the first checkpoint and between two of them; then SIGTERM, which saves first."""
    folder = tmp_path / "killed"
    child = start(["train", *SETTINGS, f"run_dir={folder}"], tmp_path)
    wait_for_step(child, folder, 1)
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child = start(["train", f"resume={folder}"], tmp_path)
    wait_for_step(child, folder, 3)
    time.sleep(0.13)
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child = start(["train", f"resume={folder}"], tmp_path)
    wait_for_step(child, folder, 5)
    child.send(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM
    assert f"train resume={folder} goes on" in child.log.read_text()
    saved = Checkpoints(folder, 9).steps()[-1]
    assert int(saved.name.removeprefix("step_")) == len((folder / "metrics.jsonl").read_text().splitlines())
    finish(folder)
    assert_same_run(uninterrupted, folder)


def cut(run_folder: Path, folder: Path) -> Path:
    """A copy of the run as if it had stopped at its newest checkpoint before the end."""
    shutil.copytree(run_folder, folder)
    shutil.rmtree(folder / "checkpoints" / "step_000008")
    for file in ("finished.json", "summary.json"):
        (folder / file).unlink()
    return folder


def test_resuming_says_what_it_cannot_do_and_does_what_it_can(uninterrupted, configure, tmp_path):
    folder = cut(uninterrupted, tmp_path / "cut")
    with pytest.raises(UsageError, match=r"optim.lr, rewards cannot change .* training.steps, "):
        resumed_config("train", [f"resume={folder}", "optim.lr=3", "rewards=hpsv2", "training.steps=9"])
    assert resumed_config("train", [f"resume={folder}", "seed=0", "tracker=null"]).tracker is None, (
        "an equal value is no change"
    )
    with pytest.raises(UsageError, match=r"the run is finished at step 8; raise training.steps"):
        check(resumed_config("train", [f"resume={uninterrupted}"]), uninterrupted)
    with pytest.raises(UsageError, match="holds an unfinished run: resume="):
        check(configure("train", f"run_dir={folder}"), folder)

    config = (folder / "config.yaml").read_text()
    for other in ("os.system", "textcraftor.cli.os.system"):
        (folder / "config.yaml").write_text(config.replace("torch.optim.AdamW", other))
        with pytest.raises(UsageError, match=rf"code that is not TextCraftor's; .* repeat optim._target_={other}"):
            resumed_config("train", [f"resume={folder}"])
    (folder / "config.yaml").write_text(config)

    finish(folder)
    assert_same_run(uninterrupted, folder)


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_checkpoint_is_detected_and_the_one_before_offered(uninterrupted, tmp_path, damage):
    folder = shutil.copytree(uninterrupted, tmp_path / "damaged")
    newest, older = (Checkpoints(folder, 9).steps()[i] for i in (-1, -2))
    file = newest / "state.pt"
    content = bytearray(file.read_bytes())
    if damage == "altered":
        content[len(content) // 2] ^= 1
    file.unlink() if damage == "missing" else file.write_bytes(content[:-10] if damage == "truncated" else content)
    said = rf"{newest.name} is damaged \(state.pt is .*\); delete it to go on from {older.name}"
    with pytest.raises(UsageError, match=said):
        check(resumed_config("train", [f"resume={folder}", "training.steps=10"]), folder)
    shutil.rmtree(newest)
    assert Checkpoints(folder, 9).newest() == older


def test_a_full_disk_leaves_the_last_good_checkpoint(configure, tmp_path):
    """The system itself refuses to write past a limit, in the middle of the second checkpoint."""
    state = load(configure("train", *SETTINGS)).state()
    checkpoints = Checkpoints(tmp_path, keep=2)
    state.step = 1
    checkpoints.save(state, "seed: 0")
    size = (tmp_path / "checkpoints" / "step_000001" / "state.pt").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    state.step = 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(UsageError, match=r"step_000002 could not be written .*step_000001 is the last good one"):
            checkpoints.save(state, "seed: 0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000001"]
    assert checkpoints.newest().name == "step_000001"


def test_only_the_newest_checkpoints_stay_and_hold_everything(uninterrupted):
    kept = Checkpoints(uninterrupted, 2).steps()
    assert [path.name for path in kept] == ["step_000006", "step_000008"]
    assert {path.name for path in kept[-1].iterdir()} == {"state.pt", "process_0.pt", "config.yaml", "sha256.json"}
    state = torch.load(kept[-1] / "state.pt", weights_only=True)
    wanted = {"learned", "optimizer", "scaler", "ema", "rewards", "step", "skipped", "watched"}
    assert wanted <= set(state)
    own = torch.load(kept[-1] / "process_0.pt", weights_only=True)
    assert {"torch", "cuda", "numpy", "python"} == set(own["random"])
    assert "micro_batch" in own["plan"]
