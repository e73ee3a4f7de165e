"""The command: stage by stage or at once, in several rounds, resumed, with pairs taken out, on every kind of model."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import PROMPTS
from tests.training.test_processes import processes
from textcraftor.enhancement.enhance import check, run
from textcraftor.enhancement.opening import STATE, read_states, session_of
from textcraftor.errors import UsageError
from textcraftor.inference.generate import generate
from textcraftor.inference.mix import Mix
from textcraftor.models.loading import load_pipeline
from textcraftor.models.model import Model
from textcraftor.sampling.conditioning import ConditioningSchedule

SCRIPTED = "+understander._target_=tests.enhancement.understanders.Scripted"
QUICK = (
    SCRIPTED,
    "+understander.more='in good light'",
    "rewards=aesthetic",
    "sampling.steps=2",
    "training.steps=2",
    "training.warmup=0",
    "training.batch_size=2",
    "evaluation.prompts=2",
    "evaluation.seeds=[0]",
    "filter.gain.total=-100",
    "batch_size=2",
    "device=cpu",
)


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join([*PROMPTS, "a blue circle", "a large gray ring"]))
    return file


@pytest.fixture
def enhance(configure, tmp_path, prompts):
    """Run the command with small settings; returns its folder."""

    def start(name: str, *overrides: str):
        folder = tmp_path / name
        keys = [f"prompts.path={prompts}", "prompts.held_out=null", f"run_dir={folder}", *overrides]
        run(configure("enhance", *QUICK, *keys), folder)
        return folder

    return start


@pytest.fixture
def always_gains(monkeypatch):
    """So that every round is followed by the next one."""
    monkeypatch.setattr(
        "textcraftor.enhancement.enhance.gain", lambda *_: dict.fromkeys(("mean", "low", "high"), 1.0) | {"n": 2}
    )
    monkeypatch.setattr(
        "textcraftor.enhancement.outcome.gain", lambda *_: dict.fromkeys(("mean", "low", "high"), 1.0) | {"n": 2}
    )


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stage_by_stage_and_interrupted_it_ends_with_the_same_files_as_at_once(enhance):
    """Half of the answers and of the pictures are taken away again, as where a stage is cut short. Scores are those of
    other batches then, and equal but for rounding."""
    whole = files_of(enhance("whole", "rounds=1", "limit=2"))
    for stage, side in (("advise", "advice.jsonl"), ("remake", "after/rows.0.jsonl"), ("filter", ""), ("train", "")):
        folder = enhance("parts", "rounds=1", "limit=2", f"stage={stage}")
        if side:
            file = folder / "round_1" / side
            lines = file.read_text().rstrip("\n").split("\n")
            cut = file.with_name("advice.0.part") if stage == "advise" else file
            cut.write_text("\n".join([*lines[:-1], lines[-1][:20]]))
            if cut != file:
                file.unlink()
            (folder / "round_1" / "after" / "finished.json").unlink(missing_ok=True)
    parts = files_of(enhance("parts", "rounds=1", "limit=2"))
    assert whole.keys() == parts.keys()
    same = {name for name in whole if name.endswith((".png", STATE, "kept.jsonl", "table.md"))}
    assert len(same) > 10
    assert [name for name in same if whole[name] != parts[name]] == []


@pytest.mark.usefixtures("always_gains")
@pytest.mark.parametrize("tune", ["denoiser_lora", "text_encoder_lora"])
def test_rounds_add_up_and_the_result_is_an_ordinary_run(enhance, tune, model, sampling, configure):
    """The second round begins with what the first one learned, and the pictures of the result, opened as any run's, are
    those of the model with the adapters of both rounds attached."""
    folder = enhance("run", "rounds=2", f"tune={tune}", "training.steps=4", "limit=2")
    states = [read_states(folder / f"round_{number}" / "run") for number in (1, 2)]
    part = next(iter(states[0]))
    for name, first in states[0][part].items():
        both = states[1][part][name]
        assert torch.equal(both[:8] if ".lora_A." in name else both[:, :8], first)
    jobs = [(PROMPTS[0], 3), (PROMPTS[2], 4)]
    with session_of(configure("enhance", *QUICK, f"tune={tune}"), read_states(folder)) as session:
        wanted = generate(session.model, jobs, session.schedule, sampling)
    mix = Mix({"a": folder})
    mix.load_denoiser(model)
    ours = generate(model, jobs, mix.schedule(model), sampling)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4)
    plain = generate(
        Model(load_pipeline(str(model.pipeline.name_or_path))), jobs, ConditioningSchedule.original(), sampling
    )
    assert (ours - plain).abs().max() > 1e-3, "nothing was learned: the test proves nothing"


def test_methods_learn_from_equal_pairs_less_those_that_somebody_takes_out(enhance, tmp_path):
    """A folder whose pairs are chosen is copied, and each method goes on in one."""
    folder = enhance("run", "rounds=1", "stage=filter")
    learned = {}
    for name, method, lines in (
        ("all", "lora", 3),
        ("fewer", "lora", 2),
        ("dpo", "dpo", 3),
        ("pairs", "differential", 3),
    ):
        shutil.copytree(folder, tmp_path / name)
        kept = tmp_path / name / "round_1" / "kept.jsonl"
        kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:lines]))
        enhance(name, "rounds=1", f"method={method}", "stage=train")
        learned[name] = load_file(tmp_path / name / "round_1" / "run" / STATE)
    for one, other in itertools.combinations(learned.values(), 2):
        assert any(not torch.allclose(tensor, other[name], atol=1e-5) for name, tensor in one.items())
    with pytest.raises(UsageError, match="holds the beginning of another enhancement, by method"):
        enhance("all", "rounds=1", "method=dpo")


def test_answers_that_cannot_be_used_are_counted_and_skipped(enhance):
    keys = ["+understander.faulty=star", "+understander.silent=green"]
    folder = enhance("run", "rounds=1", *keys)
    counts = json.loads((folder / "summary.json").read_text())["rounds"][0]
    assert (counts["pictures"], counts["faults"], counts["advised"], counts["pairs"], counts["kept"]) == (3, 1, 1, 1, 1)
    page = (folder / "round_1" / "pairs.html").read_text()
    assert page.count("<figure>") == 2
    assert "a pink cross in good light" in page


def test_a_remake_from_the_picture_itself_is_nearer_to_it(enhance):
    def changes(folder):
        rows = [json.loads(line) for line in (folder / "round_1" / "pairs.jsonl").read_text().splitlines()]
        return sum(row["scores"]["after"]["similarity"] for row in rows) / len(rows)

    keys = ["rounds=1", "stage=filter", "sampling.steps=4", "filter.similarity=-1", "+understander.left=a gray ring"]
    whole, half = (enhance(name, *keys, f"remake.strength={one}") for name, one in (("whole", 1), ("half", 0.25)))
    assert changes(half) > changes(whole)


REFUSED = {
    "understander is needed": ["~understander", "understander=null"],
    "filter.gain.beauty: no scorer of rewards has this name; there are total, aesthetic": ["+filter.gain.beauty=1"],
    "filter.similarity=0.5 needs filter.clip=": ["filter.similarity=.5", "filter.clip=null"],
    "tune.denoiser.lora=null: this learns adapters": ["tune=denoiser"],
    "tune: the learning rates": ["tune=both_lora", "tune.denoiser.lr=1e-3", "tune.text_encoder.lr=1e-4"],
    "too few different prompts": ["evaluation.prompts=1"],
    "method=sft must be one of differential, lora, dpo": ["method=sft"],
    "stage=judge must be one of advise, remake, filter, train": ["stage=judge"],
    "remake.strength=0 must be above 0": ["remake.strength=0"],
    "tuned names a, b: this begins with one run at most": ["tuned.a=x", "tuned.b=y"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_written(configure, prompts, tmp_path, message):
    keys = [*QUICK, f"prompts.path={prompts}", "prompts.held_out=null", *REFUSED[message]]
    if "understander" in message:
        keys = [key for key in keys if "understander" not in key]
    with pytest.raises(UsageError) as refusal:
        check(configure("enhance", *keys), tmp_path / "run")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_an_understander_without_advice_and_a_filter_that_keeps_nothing_say_why_and_lose_nothing(enhance, tmp_path):
    with pytest.raises(UsageError, match="gave no advice on 3 pictures; the first: no JSON list in the answer"):
        enhance("silent", "rounds=1", "+understander.faulty=a")
    with pytest.raises(UsageError, match=r"filter keeps none of 3 pairs \(total rose by .* at most; .*: loosen filter"):
        enhance("run", "rounds=1", "filter.gain.total=100")
    folder = tmp_path / "run"
    assert (folder / "round_1" / "pairs.html").exists()
    assert not (folder / "round_1" / "kept.jsonl").exists()
    with pytest.raises(UsageError, match="holds the beginning of another enhancement, by remake"):
        enhance("run", "rounds=1", "remake.strength=.5", "filter.gain.total=100")
    enhance("run", "rounds=1", "filter.gain.total=-100")
    assert (folder / "summary.json").exists()


def test_two_processes_share_the_work(enhance, prompts, tmp_path):
    """They ask about the pictures that one process makes, and write one list."""
    alone = enhance("alone", "rounds=1", "stage=filter")
    both = tmp_path / "both"
    keys = [*QUICK, f"prompts.path={prompts}", "prompts.held_out=null", "rounds=1", f"run_dir={both}", "stage=train"]
    processes(2, "enhance", *keys, cwd=tmp_path)
    kept = "round_1/kept.jsonl"
    assert (alone / kept).read_text() == (both / kept).read_text()
    assert (alone / "round_1/advice.jsonl").read_text() == (both / "round_1/advice.jsonl").read_text()
    assert (both / "round_1" / "run" / "run.json").exists()
