"""`evaluate`: whole, interrupted and sharded it finds the same; what does not belong together is refused."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from omegaconf import OmegaConf

from tests.conftest import ROOT, load
from tests.inference.test_mix import make_run
from textcraftor.errors import UsageError
from textcraftor.evaluation import run as module
from textcraftor.evaluation.evaluate import evaluate
from textcraftor.evaluation.run import check, run
from textcraftor.evaluation.suite import Suite, read_rows_of
from textcraftor.fetch import assets_of
from textcraftor.inference.generate import Sampling
from textcraftor.rewards.total import load_rewards
from textcraftor.sampling.conditioning import ConditioningSchedule

SMALL = ("limit=2", "seeds=[0,3]", "sampling.steps=3", "rewards=aesthetic", "batch_size=3", "device=cpu")
DATA = ROOT.parent / "shared" / "data" / "prompts"


@pytest.fixture(scope="module")
def whole(configure, tmp_path_factory) -> Path:
    """A finished evaluation of a run that was trained on the aesthetic scorer; to be read only."""
    folder = tmp_path_factory.mktemp("evaluations")
    tuned = make_run(folder / "a", 1, {"text_encoder": None})
    OmegaConf.save(
        configure("train", "rewards=aesthetic", "+reward@rewards.clip=clip", "rewards.clip.weight=0"),
        tuned / "config.yaml",
    )
    evaluation = folder / "whole"
    run(configure("evaluate", *SMALL, f"tuned.a={tuned}", f"run_dir={evaluation}"), evaluation)
    return evaluation


def again(configure, whole: Path, folder: Path, *overrides: str) -> str:
    return run(configure("evaluate", *SMALL, f"tuned.a={whole.parent / 'a'}", f"run_dir={folder}", *overrides), folder)


def test_rows_hold_what_the_pictures_were_measured_by(whole, configure):
    """The base's rows are those of `evaluate` on the untuned model; every picture is there, with its prompt."""
    config = configure("evaluate", *SMALL)
    suite, model = Suite.of(config), load(config.model.path)
    mix, sampling = load_rewards(config.rewards), Sampling(**config.sampling)
    found = evaluate(model, ConditioningSchedule.original(), sampling, mix, None, suite.prompts, suite.seeds)
    rows = read_rows_of(whole / "base")
    for name in ("aesthetic", "total", "diversity"):
        np.testing.assert_allclose([row[name] for row in rows], found.measures[name].ravel(), rtol=1e-4, atol=1e-5)
    assert [row["category"] for row in rows] == ["scenes"] * 4 + ["unseen_words"] * 4
    assert all((whole / "base" / row["picture"]).exists() for row in rows)
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["trained_on"] == ["aesthetic"], "a scorer of weight 0 was held out"
    assert set(summary["categories"]) == {"scenes", "unseen_words"}
    difference = np.mean([row["aesthetic"] for row in read_rows_of(whole)]) - np.mean(
        [row["aesthetic"] for row in rows]
    )
    assert summary["difference"]["aesthetic"]["mean"] == pytest.approx(difference)
    assert summary["difference"]["aesthetic"]["n"] == 4
    html = (whole / "report.html").read_text()
    assert re.search(r"aesthetic <small[^>]*>trained on<", html)
    for text in (html, (whole / "table.md").read_text()):
        assert "95 % interval over prompts" in text
    assert html.index("Prompts that lost most") < html.index("Prompts that gained most")


def assert_same_rows(first: Path, second: Path) -> None:
    ours, theirs = (pyarrow.parquet.read_table(folder / "rows.parquet").to_pylist() for folder in (first, second))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert (
                value == pytest.approx(other[key], rel=1e-3, abs=1e-4)
                if isinstance(value, float)
                else value == other[key]
            )


def test_an_interrupted_evaluation_goes_on_and_a_finished_one_is_refused(whole, configure, tmp_path, monkeypatch):
    """Interrupted while a row is written: what is whole is kept and not made again, and the rows are the same."""
    folder, made, measure = tmp_path / "cut", [], module.measure

    def counted(*given):
        made.extend(given[5])
        if len(made) == 14:  # the base's 8, and the second three of ours
            raise KeyboardInterrupt
        return measure(*given)

    monkeypatch.setattr(module, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        again(configure, whole, folder)
    rows = folder / "rows.0.jsonl"
    rows.write_bytes(rows.read_bytes()[:-20])
    made.clear()
    again(configure, whole, folder, "batch_size=2")
    assert len(made) == 6
    assert_same_rows(folder, whole)
    assert_same_rows(folder / "base", whole / "base")
    with pytest.raises(UsageError, match="already holds an evaluation"):
        again(configure, whole, folder)


def test_shards_together_are_the_whole(whole, configure, tmp_path):
    """Also against the base of another evaluation, which is then not made again."""
    folder, base = tmp_path / "shards", f"base={whole / 'base'}"
    assert "is not complete yet" in again(configure, whole, folder, base, "shard=1/2")
    with pytest.raises(UsageError, match=r"holds the beginning of another evaluation, by rewards"):
        again(configure, whole, folder, base, "shard=0/2", "rewards.aesthetic.weight=3")
    assert "wrote" in again(configure, whole, folder, base, "shard=0/2")
    assert_same_rows(folder, whole)
    assert not (folder / "base").exists()
    ours, theirs = (json.loads((one / "summary.json").read_text()) for one in (folder, whole))
    assert ours["difference"].keys() == theirs["difference"].keys()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["shard=2/2"], r"shard=2/2 must be k/n"),
        (["seeds=[1,1]"], r"seeds=\[1, 1\] must be a list of at least one seed, each named once"),
        (["suite.category=Kind"], r"suite.category=Kind is no column of"),
        (["base=nowhere", "tuned.a=RUN"], r"nowhere holds no rows.parquet"),
        (["base=BASE", "tuned.a=RUN", "limit=1"], r"holds other prompts or seeds than this evaluation"),
        (["base=BASE"], r"base= is compared with what tuned, mix, denoiser.path or upsample change"),
        (["prompts.path=gone.txt"], r"prompts.path=gone.txt does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_loads(whole, configure, tmp_path, overrides, said):
    places = {"BASE": str(whole / "base"), "RUN": str(whole.parent / "a")}
    for short, place in places.items():
        overrides = [override.replace(short, place) for override in overrides]
    with pytest.raises(UsageError, match=said):
        check(configure("evaluate", *SMALL, *overrides), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_file_of_ones_own_takes_the_suites_place(configure, tmp_path):
    file = tmp_path / "own.txt"
    file.write_text("a red circle\n\na blue star\n")
    suite = Suite.of(configure("evaluate", f"prompts.path={file}", "seeds=[7]"))
    assert suite.prompts == ("a red circle", "a blue star")
    assert suite.jobs == [(0, 7), (1, 7)]


@pytest.mark.skipif(not DATA.exists(), reason="the published prompt sets are not on this machine")
@pytest.mark.parametrize(
    ("suite", "files", "categories", "prompts"),
    [
        ("parti", {"parti": "parti_prompts.tsv"}, 12, 1632),
        ("drawbench", {"drawbench": "drawbench.txt"}, 1, 200),
        ("ocr", {"ocr": "ocr_prompts.txt"}, 1, 1018),
        ("t2i_compbench", None, 7, 2100),
    ],
)
def test_published_suites_are_read_whole(configure, suite, files, categories, prompts):
    """The same files, by their hashes, as the addresses name."""
    config = configure("evaluate", f"suite={suite}")
    names = files or {name: f"t2i_compbench_{name}_val.txt" for name in config.suite.files}
    for name, file in names.items():
        assert config.suite.files[name].endswith(hashlib.sha256((DATA / file).read_bytes()).hexdigest())
        config.suite.files[name] = str(DATA / file)
    found = Suite.of(config)
    assert len(set(found.categories)) == categories
    assert len(found.prompts) == prompts


def test_fetch_knows_a_suites_files(configure):
    assert "suite.anime" in assets_of(configure("fetch", "suite=hpsv2"))
    assert not any(key.startswith("suite.") for key in assets_of(configure("fetch")))
    found = assets_of(configure("fetch", "suite=geneval", "judge=detector", "understander=endpoint"))
    assert {key for key in found if key.startswith(("suite.", "judge.", "understander."))} == {
        "suite.geneval",
        "suite.questions",
        "judge.path",
        "judge.clip",
    }
