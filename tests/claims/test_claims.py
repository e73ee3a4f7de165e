"""`textcraftor claims`: every claim is well formed, jobs are made once and gone on with, and the page says what was
found."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from tests.conftest import QUICK
from textcraftor.claims import lanes
from textcraftor.claims.claims import check, run
from textcraftor.claims.jobs import Job, Workshop, content_hash
from textcraftor.claims.plan import claim_of, plans_of
from textcraftor.cli import paths_as_list
from textcraftor.config.compose import compose, groups
from textcraftor.errors import UsageError
from textcraftor.evaluation.ledger import read_ledger
from textcraftor.evaluation.suite import read_rows_of

TINY = {
    "paper": "none",
    "section": "none",
    "sentence": "A tuned encoder makes other pictures.",
    "caveat": None,
    "runs": {"tuned": {"command": "train", "keys": [], "rates": [1e-3, 2e-3]}},
    "arms": {"base": {}, "half": {"keys": ["tuned.a={tuned}", "mix.a=.5"], "base": "base"}},
    "checks": {"gain": {"measure": "aesthetic", "of": {"half": 1, "base": -1}, "order": [], "holds": "above"}},
}


def tiny(claim: dict, **more):
    """The configuration of one claim of its own."""
    return compose("claims", ["scale=smoke"], {"claim.tiny": claim, **more})


@pytest.mark.parametrize("name", groups()["claim"])
def test_every_claim_is_well_formed(configure, name):
    """Of the file's own name; its checks are of its arms, its arms of its runs, and it has something to say."""
    values = OmegaConf.to_container(configure("claims", f"claim={name}").claim, resolve=True)
    assert list(values) == [name]
    claim = claim_of(values[name])
    assert claim.checks
    assert claim.sentence.endswith(".")
    assert any(arm.base is None for arm in claim.arms.values())
    compared = {arm for one in claim.checks.values() for arm in (*one.of, *one.order)}
    assert set(claim.arms) - compared <= {arm for arm in claim.arms if arm.startswith("base")}, "an arm for nothing"


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("checks", {"gain": {**TINY["checks"]["gain"], "of": {"gone": 1}}}, "must be made of arms of this claim"),
        ("checks", {"gain": {**TINY["checks"]["gain"], "of": {}}}, "weights by arm, or else order"),
        (
            "arms",
            {"base": {}, "half": {"keys": ["tuned.a={gone}"], "base": "base"}},
            "the folder of a run of this claim",
        ),
        ("arms", {"base": {}, "half": {"keys": [], "base": "none"}}, "an arm of untuned pictures"),
        ("arms", {"base": {"keys": ["abc"]}}, "a list of keys as on the command line"),
        ("runs", {"tuned": {"command": "fetch"}}, "must be one of train, tune-captions"),
        ("runs", {"tuned": {"command": "train", "rates": [0.0]}}, "a list of learning rates above 0"),
    ],
)
def test_a_claim_that_cannot_be_meant_is_refused_with_its_key(part, value, words):
    with pytest.raises(UsageError, match=words):
        tiny({**TINY, part: value})


def test_words_of_the_command_line():
    every = ",".join(groups()["claim"])
    assert paths_as_list("claims", ["dial", "last_k", "seeds=8"]) == ["seeds=8", "claim=[dial,last_k]"]
    assert paths_as_list("claims", ["all"]) == [f"claim=[{every}]"]
    assert paths_as_list("claims", ["smoke", "dial"]) == ["claim=[dial]", "scale=smoke"]
    with pytest.raises(UsageError, match="unknown claim dail; did you mean dial"):
        paths_as_list("claims", ["dail"])


def test_a_job_is_named_by_its_configuration_and_weights(configure, tmp_path):
    """The same keys give the same folder; another key, seed, rate, file or earlier run gives another, and where it is
    computed and what it is compared with do not."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    workshop = Workshop(tmp_path / "jobs", {"evaluate": [f"prompts.path={prompts}"]}, {}, {}, "cpu")

    def name(*keys: str, **options) -> str:
        return workshop.job("evaluate", keys, options.pop("places", {}), **options).folder.name

    first = name()
    assert (
        first
        == name()
        == Workshop(tmp_path / "elsewhere", workshop.keys, {}, {}, "cpu").job("evaluate", [], {}).folder.name
    )
    other = Job("evaluate", (), tmp_path / "jobs" / "0")
    assert first == name(base=other)
    run = Job("train", (), tmp_path / "jobs" / "1")
    names = {first, name("seeds=[7]"), name("tuned.a={t}", places={"t": run}), name("tuned.a={t}", places={"t": other})}
    prompts.write_text("a blue star\n")
    content_hash.cache_clear()
    assert len(names | {name()}) == 5


def test_seeds_rates_and_bases_of_a_plan(tmp_path):
    """Trained arms have a job for each seed, the base has one; each arm needs the base and its own seed's run; more
    seeds add jobs and change none; trials have the seed that no claim uses."""
    config = tiny(TINY, **{"shrink": {}, "keys": {}, "seeds": 2, "tune_rates": True, "device": "cpu"})
    mine = plans_of(config, tmp_path)["tiny"]
    arms = mine.arms({"tuned": 2e-3})
    assert [len(arms[name]) for name in ("base", "half")] == [1, 2]
    for seed, job in enumerate(arms["half"]):
        trained, base = job.needs
        assert {f"seed={seed}", "optim.lr=0.002"} <= set(trained.keys)
        assert base == arms["base"][0]
        assert f"tuned.a={trained.folder}" in job.keys
        assert f"base={base.folder}" in job.keys
    assert {one.folder for one in arms["half"]}.isdisjoint(one.folder for one in mine.arms({"tuned": 1e-3})["half"])
    trials = mine.trials()["tuned"]
    assert all("seed=1000" in job.keys for job in trials.values())
    assert list(trials) == [1e-3, 2e-3]


def test_what_needs_a_job_that_failed_is_left_out_and_the_rest_is_done(tmp_path, monkeypatch):
    """What is finished is not done again."""
    done = []

    def carry_out(job, records):
        if job.command == "bad":
            raise UsageError("no room")
        job.folder.mkdir()
        (job.folder / "finished.json").write_text("{}")
        done.append(job.folder.name)

    monkeypatch.setattr(lanes, "carry_out", carry_out)
    bad, good = Job("bad", (), tmp_path / "bad"), Job("good", (), tmp_path / "good")
    after = [Job("good", (), tmp_path / f"after_{one.folder.name}", (one,)) for one in (bad, good)]
    failed = lanes.do(after, 1, {}, lambda line: None)
    assert {folder.name for folder in failed} == {"bad", "after_bad"}
    assert all("no room" in line for line in failed.values())
    assert done == ["good", "after_good"]
    lanes.do([after[1]], 1, {}, lambda line: None)
    assert done == ["good", "after_good"]
    with pytest.raises(UsageError, match="no room"):
        lanes.check_ended(list(failed.values()))


def test_a_claim_is_checked_and_gone_on_with(tmp_path):
    """Tiny, but all of it: a training, evaluations, the ledger, the page and pictures; a second seed makes its own jobs
    alone, and a small scale is kept out of the documentation."""
    folder, small = tmp_path / "claims", ["sampling.steps=2", "rewards=aesthetic"]
    shrink = {"shrink.train": [*QUICK, *small, "training.steps=1"], "shrink.evaluate": small}
    config = tiny(TINY, **shrink, **{"keys.evaluate": [], "lanes": 1, "device": "cpu"})
    told = run(config, folder)
    (entry,) = read_ledger(folder / "claims.json").values()
    assert entry["verdict"] == "undecided"
    assert "## tiny" in told
    assert "**Undecided.**" in told
    rows = [read_rows_of(job) for job in (folder / "jobs").iterdir() if (job / "rows.parquet").exists()]
    means = [sum(row["aesthetic"] for row in of_job) / len(of_job) for of_job in rows]
    assert abs(entry["checks"]["gain"]["mean"]) == pytest.approx(abs(means[0] - means[1]), abs=1e-6)
    assert (folder / "claims" / "tiny.png").exists()
    assert str(tmp_path) not in (folder / "claims.json").read_text() + (folder / "claims.md").read_text(), (
        "a local path"
    )
    assert entry["arms"]["half"]["passes"] > 0
    assert entry["rates"] == {"tuned": 1e-3}, "the first, without trials"
    before = {job: job.stat().st_mtime_ns for job in (folder / "jobs").iterdir()}
    config.seeds = 2
    run(config, folder)
    after = {job: job.stat().st_mtime_ns for job in (folder / "jobs").iterdir() if not job.name.endswith(".log")}
    assert len(after) == 5
    assert {job: after[job] for job in after if job in before} == {
        job: at for job, at in before.items() if job in after
    }
    config.docs = str(tmp_path)
    with pytest.raises(UsageError, match="keeps what is measured at full size"):
        check(config, folder)


def test_what_cannot_work_is_refused_first(configure, tmp_path):
    with pytest.raises(UsageError, match=r"claim=\[\]: name claims, as textcraftor claims dial"):
        check(configure("claims"), tmp_path / "none")
    with pytest.raises(UsageError, match="must be at least 1000"):
        configure("claims", "claim=dial", "rate_seed=5")
    assert not (tmp_path / "none").exists()
