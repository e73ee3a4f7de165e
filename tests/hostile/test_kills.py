"""Whoever is killed while writing, wherever that is, is simply started again, and ends with what an undisturbed command
writes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
from PIL import Image

from tests.captioning import test_captioners
from tests.children import KILLED, run
from tests.conftest import WEIGHTS
from tests.evaluation.test_rating import rated
from tests.hostile.conftest import LINES, contents
from tests.training.rated_pictures import MODELS, make_rated
from textcraftor.captioning.prefix import PrefixCaptioner
from textcraftor.evaluation.rating import FILE, Unit, add, begin

SMALL = ["sampling.steps=2", "device=cpu"]
COMMANDS = {
    "generate": ["generate", "prompt=a red circle", "seeds=[0,1]", *SMALL],
    "letters": ["letters", "count=3"],
    "upsample": ["upsample", "prompts.path=p.txt"],
    "score": ["score", "images=pictures", "prompts.path=p.txt", "rewards=aesthetic"],
    "compare": ["compare", "{run}", "{lora_run}"],
    "ratings": ["ratings", "ratings.jsonl"],
    "train-reward": [
        "train-reward",
        f"rated/{FILE}",
        *(f"models.{name}=rated/{name}" for name in MODELS),
        *("layout=pickscore", "folds=2", "draws=0", "training.steps=1", "training.batch_size=2", "device=cpu"),
    ],
    "export": ["export", "tuned.a={run}", "mix.a=1", "device=cpu"],
    "evaluate": [
        "evaluate",
        "tuned.a={run}",
        "mix.a=1",
        "suite=toybox",
        "limit=1",
        "seeds=[0,1]",
        "batch_size=1",
        "rewards=aesthetic",
        *SMALL,
    ],
    "recaption": ["recaption", "data.path=pictures", "captioner.path={captioner}", "batch_size=1", "device=cpu"],
    "train-captioner": [
        "train-captioner",
        "data.path=pictures",
        f"captioner.clip={WEIGHTS / 'aesthetic_clip'}",
        "captioner.language_model={language_model}",
        "captioner.max_new_tokens=5",
        *(f"stages.{stage}.steps=1" for stage in ("base", "short", "descriptive")),
        "batch_size=1",
        "device=cpu",
    ],
    "tune-captions": [
        "tune-captions",
        "data.path=pictures",
        "prompts.held_out=p.txt",
        *(line for line in LINES if not line.startswith(("gradient", "training.sampling"))),
        "tracker=null",
        "captions.p=0",
    ],
    "enhance": [
        "enhance",
        "prompts.path=p.txt",
        "prompts.held_out=h.txt",
        "+understander._target_=tests.enhancement.understanders.Scripted",
        "rewards=aesthetic",
        "rounds=1",
        "training.steps=1",
        "filter.gain.total=-100",
        "evaluation.seeds=[0]",
        "evaluation.batch_size=1",
        "batch_size=1",
        *SMALL,
    ],
    "train": ["train", *LINES, "tracker=null", "training.steps=2", "training.checkpoint_every=1"],
}
# Of each kind one without --long: pictures one by one, rows in parts, a folder at once. Training is killed elsewhere.
SHORT = ("generate", "score", "evaluate", "letters")
# What says how long something took, how much memory there was, or which run was resumed.
TIMED = ("summary.json", "report.html", "metrics.jsonl", "sha256.json")


@pytest.fixture
def place(tmp_path) -> Path:
    """What working folders are made from: prompts and captioned pictures."""
    tmp_path = tmp_path / "inputs"
    tmp_path.mkdir()
    (tmp_path / "p.txt").write_text("a red circle\na blue star\n")
    (tmp_path / "h.txt").write_text("a pink cross\na green ring\n")
    (tmp_path / "pictures").mkdir()
    lines = []
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (64, 64), color).save(tmp_path / "pictures" / name)
        more = [{"kind": kind, "text": f"a {color} star"} for kind in ("short", "descriptive")]
        row = {"file_name": name, "caption": f"a {color} circle", "synthetic": more}
        lines.append(json.dumps(row) + "\n")
    (tmp_path / "pictures" / "metadata.jsonl").write_text("".join(lines))
    make_rated(tmp_path / "rated", seeds=1)
    unit = Unit("a red circle", 0, ("a", "b"))
    add(tmp_path / FILE, begin(tmp_path / FILE, {"a": "1", "b": "2"}, {"prefer": "Which?"}), rated(unit, "left"))
    return tmp_path


language_model = test_captioners.language_model


@pytest.fixture(scope="module")
def captioner(tmp_path_factory, language_model) -> Path:
    """One that learned nothing; what it says matters to nobody here."""
    folder = tmp_path_factory.mktemp("captioner")
    PrefixCaptioner(str(WEIGHTS / "aesthetic_clip"), language_model, 2, 5).save(folder / "descriptive")
    return folder


def tensors(content: bytes) -> dict[str, list]:
    return {name: one.float().tolist() for name, one in safetensors.torch.load(content).items()}


def written(folder: Path) -> dict[str, object]:
    """What a command wrote, but for times and whether it was resumed; and for what a kill after the last file leaves:
    a lock, which blocks nobody, and the parts that the last file was made from. Of weights the tensors: safetensors
    writes what is said about them in any order."""
    found: dict[str, object] = {
        name: tensors(one) if name.endswith(".safetensors") else one
        for name, one in contents(folder).items()
        if not re.search(r"\.lock|\.part$|rows\..*jsonl$", name)
    }
    assert not [name for name in found if ".partial" in name or ".old" in name]
    if "config.yaml" in found:
        found["config.yaml"] = contents(folder)["config.yaml"].replace(b"resume: out\n", b"resume: null\n")
    return {name: one for name, one in found.items() if Path(name).name not in TIMED and "checkpoints/" not in name}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_given_again_ends_as_if_nothing_had_been(name, place, request):
    if name not in SHORT and not request.config.getoption("long"):
        pytest.skip("with --long alone")
    arguments = list(COMMANDS[name])
    for word in ("run", "lora_run", "captioner", "language_model"):
        if any(f"{{{word}}}" in one for one in arguments):
            made = str(request.getfixturevalue(word))
            arguments = [one.replace(f"{{{word}}}", made) for one in arguments]
    arguments += ["name=x", "run_dir=out"]
    whole = shutil.copytree(place, place.parent / "whole")
    code, points, said = run(arguments, whole)
    assert code == 0, said
    assert len(points) >= 4, points
    wanted = written(whole / "out")
    assert "finished.json" in wanted
    every = range(1, len(points) + 1)
    # Of the points: the one in the middle, unless all are asked for.
    for point in every if request.config.getoption("long") else [len(points) // 2]:
        folder = shutil.copytree(place, place.parent / f"killed_{point}")
        code, _, said = run(arguments, folder, kill_at=point)
        assert code == KILLED, f"{points[point - 1]}: {said}"
        again = (
            [name, "resume=out"]
            if name in ("train", "tune-captions") and (folder / "out" / "config.yaml").exists()
            else arguments
        )
        code, _, said = run(again, folder)
        if code != 0 and (folder / "out" / "finished.json").exists():
            assert re.search("already holds|is finished|is not empty", said)
        else:
            assert code == 0, f"{points[point - 1]}: {said}"
        assert written(folder / "out") == wanted, points[point - 1]
