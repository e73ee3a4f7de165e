"""Python's public surface stays; every example of docs/python.md runs as it stands there, on smaller settings."""

from __future__ import annotations

import inspect
import json
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import CLIPTextModel

import textcraftor
from tests.conftest import QUICK, ROOT
from textcraftor.api import calling, results
from textcraftor.cli import main
from textcraftor.errors import UsageError

PAGE = (ROOT / "docs" / "python.md").read_text()
SMALL = {
    "train": (*QUICK, "evaluation.seeds=[0]"),
    "generate": ("sampling.steps=2",),
    "evaluate": ("sampling.steps=2",),
}


def members(kind: type) -> set[str]:
    """The public names of a class that it does not take from others than ours."""
    ours = [one for one in kind.__mro__ if one.__module__.startswith("textcraftor.")]
    fields = {name for one in ours for name in inspect.get_annotations(one)}
    return {name for one in ours for name in vars(one) if not name.startswith("_")} | fields


def test_the_public_surface_stays():
    """Freezes it: whatever is taken away or renamed breaks programs."""
    functions = {"train", "enhance", "generate", "evaluate", "score", "compare", "train_reward", "export", "load"}
    assert set(textcraftor.__all__) == functions | {"Mix", "Run", "UsageError"}
    assert set(dir(textcraftor)) >= set(textcraftor.__all__)
    for name in functions:
        kinds = [one.kind.name for one in inspect.signature(getattr(textcraftor, name)).parameters.values()]
        assert kinds == ["VAR_POSITIONAL", "VAR_KEYWORD"], name
    assert members(results.Run) == {"path", "summary", "report", "base", "mix", "text_encoder"}
    assert members(results.Pictures) - {"path"} == {"sheet"}
    assert members(results.Picture) == {"file", "prompt", "seed", "weights", "image"}
    assert members(results.Scores) - {"path"} == {"rows", "means"}
    assert members(results.Evaluation) == {"path", "summary", "report", "rows", "table"}
    assert members(results.Comparison) - {"path"} == {"table", "picture"}
    assert {"inputs", "encoder", "schedule", "load_denoiser", "tuned", "weights"} <= members(textcraftor.Mix)


def assert_tracked(run: Path) -> None:
    """TensorBoard has every look with its alarms, before and after, rates and pictures."""
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = events.Tags()
    summary = json.loads((run / "summary.json").read_text())
    looks = [(event.step, event.value) for event in events.Scalars("watch/held_out")]
    assert looks == [(point["step"], pytest.approx(point["held_out"], abs=1e-6)) for point in summary["watched"]]
    assert {"alarm/held_out", "watch/diversity", "after/red", "learning_rate/text_encoder"} <= set(tags["scalars"])
    assert events.Scalars("before/red")[0].value == pytest.approx(summary["before"]["red"], abs=1e-6)
    assert set(tags["images"]) == {"watch/pictures", "before and after"}


def test_the_page_runs_and_a_run_goes_on_from_python_alone(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(PAGE.splitlines()) <= 70
    meaning = calling.meaning

    @contextmanager
    def small(command, keys, values):
        with meaning(command, (*SMALL.get(command, ()), "device=cpu", *keys), values) as config:
            yield config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        calling, "meaning", lambda command, *rest: (small if command in SMALL else meaning)(command, *rest)
    )
    names: dict = {"__name__": "__main__"}  # as of a script or notebook
    for block in blocks:
        exec(block, names)
    run, again, redness = (names[name] for name in ("run", "again", "redness"))
    assert run / "summary.json" == run.path / "summary.json"
    assert set(run.summary["after"]) >= {"red", "clip"}
    assert isinstance(names["first"].image, Image.Image)
    assert [(one.prompt, one.seed) for one in names["pictures"]][:2] == [(names["prompts"][0], seed) for seed in (0, 1)]
    assert names["scores"].rows[0]["image"] == names["first"].file.name
    assert isinstance(names["encoder"], CLIPTextModel)
    untuned = textcraftor.load(model=names["pipe"], device="cpu").encoders()["text_encoder"]
    moved = [
        not torch.equal(one, other)
        for one, other in zip(names["encoder"].parameters(), untuned.parameters(), strict=True)
    ]
    assert any(moved)
    assert again.base == run.base
    assert_tracked(run.path)

    (run / "finished.json").unlink()
    monkeypatch.setattr("sys.argv", ["textcraftor", "train", f"resume={run.path}"])
    with pytest.raises(SystemExit):
        main()
    assert "rewards.red.reward was __main__.redness, an object of a Python program" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"rewards\.red\.weight cannot change in a run that has begun"):
        textcraftor.train(resume=run, rewards={"red": (redness, 4.0)})
    textcraftor.train(resume=run, rewards={"red": (redness, 5.0)}, training={"steps": 3})
    assert (run / "finished.json").exists()
