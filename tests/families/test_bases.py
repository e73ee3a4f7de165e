"""A run knows its base: commands take the run's model, refuse another, and a run that began from another keeps all."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys

import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import PROMPTS
from tests.families.conftest import FAMILIES, SCORED, small_keys
from textcraftor.cli import main
from textcraftor.data.records import Records
from textcraftor.errors import UsageError
from textcraftor.inference.mix import Mix
from textcraftor.models.base import Branch
from textcraftor.models.run_record import RunRecord
from textcraftor.models.saving import plain_state
from textcraftor.models.tuned import load_text_encoders
from textcraftor.training import train
from textcraftor.training.run import save_run

# No model= and no model.path=: what it is, the run says.
LOOK = ["prompt=a red circle", "seeds=[3]", "sampling.steps=1", "sampling.height=64", "sampling.width=64", "device=cpu"]
one_family = pytest.mark.parametrize("case", ["flux1_dev"], indirect=True)


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Runs the command in this process, from an empty folder; returns what it printed, or the one line of its error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the command sets it, but for this test alone

    def command(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["textcraftor", *arguments])
        monkeypatch.setattr(sys, "path", [*sys.path])
        with contextlib.suppress(SystemExit):
            main()
            return capsys.readouterr().out
        return capsys.readouterr().err.strip()

    return command


def picture(folder) -> bytes:
    return Records.read(folder).picture(0).tobytes()


@one_family
def test_commands_take_the_runs_own_model(case, here, prompts, tmp_path):
    run = f"tuned.a={case.run}"
    assert "wrote generated/alone" in here("generate", *LOOK, run, "name=alone")
    here("generate", *LOOK, run, f"model={case.name}", f"model.path={case.base}", "name=named")
    assert picture(tmp_path / "generated" / "alone") == picture(tmp_path / "generated" / "named")
    assert "wrote" in here("export", run, "formats=[diffusers]", "name=x", "device=cpu", "run_dir=exported")
    record = RunRecord.read(tmp_path / "exported")
    assert (record.base.config, record.base.path) == (case.name, "base"), "others need not know where it lies"
    assert record.base.sha256 == RunRecord.read(case.run).base.sha256
    assert record.parents == [{"run": "run", "weight": 1.0}]
    looks = [*LOOK[2:], *SCORED, f"prompts.path={prompts}", "limit=1", "seeds=[0]"]
    assert "| aesthetic |" in here("evaluate", run, *looks, "run_dir=evaluated")


@one_family
def test_another_model_is_refused_by_name_unless_it_is_allowed(case, here, tmp_path):
    other, moved = tmp_path / "other", tmp_path / "moved"
    for folder in (other, moved):
        shutil.copytree(case.base, folder)
    index = other / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_name_or_path": "another"}))
    keys = ["generate", *LOOK, f"tuned.a={case.run}", f"model={case.name}"]
    said = here(*keys, f"model.path={other}", "name=refused")
    assert f"tuned.a={case.run} was tuned on {case.base}, and model.path={other} is another model" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "generated").exists()
    assert "is another model" in here(*keys[:-1], "model=toybox", "name=refused")
    assert "wrote" in here(*keys, f"model.path={other}", "any_base=true", "name=allowed")
    assert "wrote" in here(*keys, f"model.path={moved}", "name=moved")
    assert picture(tmp_path / "generated" / "moved") == picture(tmp_path / "generated" / "allowed")


@one_family
def test_a_folder_of_the_first_format_still_generates(case, here, tmp_path):
    """`conditioning.json` and the configuration, of which the path of the model is read."""
    old = tmp_path / "old"
    shutil.copytree(case.run, old)
    (old / "conditioning.json").write_text(json.dumps(json.loads((old / "run.json").read_text())["conditioning"]))
    (old / "run.json").unlink()
    OmegaConf.save({"model": {"path": str(case.base)}}, old / "config.yaml")
    assert "wrote" in here(
        "generate", *LOOK, f"tuned.a={old}", "sampling.guidance_scale=1", "name=old", "sampling.scheduler=euler"
    )
    keys = ["sampling.guidance_scale=1", f"tuned.a={case.run}", "name=new"]
    here("generate", *LOOK, *keys)
    assert picture(tmp_path / "generated" / "old") == picture(tmp_path / "generated" / "new")


@pytest.mark.parametrize("case", ["sdxl", "sd35_medium"], indirect=True)
def test_a_run_on_top_of_another_holds_all_that_its_encoders_are(case, configure, prompts, tmp_path):
    """Adapters on whole encoders and on ones with adapters: from the new folder alone the embeddings are the same."""
    parts = [f"tune.{part}={{lr: auto, lora: {{rank: 2, alpha: 2.0}}}}" for part in FAMILIES[case.name]]
    keys = [*small_keys(case), f"prompts.path={prompts}", f"tuned.a={case.run}", *parts]
    job = train.load(configure("train", *keys, "gradient.k=1"))
    assert {learner.part for learner in job.learners} == set(FAMILIES[case.name])
    began = embeds(job.model, "begin")
    assert_same(embeds(job.model, "tuned"), began)
    nudge(job.learners)
    tuned = embeds(job.model, "tuned")
    assert all((one - other).abs().max() > 1e-2 for one, other in zip(tuned, began, strict=True)), "nothing learned"
    save_run(job, tmp_path / "top")
    fresh = case.model()
    load_text_encoders(fresh, tmp_path / "top", "again")
    for ours, theirs in zip(embeds(fresh, "again"), tuned, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    record = RunRecord.read(tmp_path / "top")
    assert record.parents == [{"run": str(case.run), "weight": 1.0}]
    assert record.base.path == str(case.base)
    Mix({"a": tmp_path / "top"}).schedule(case.model())


@one_family
def test_a_run_that_tunes_other_parts_keeps_what_it_began_from(case, configure, prompts, tmp_path):
    """Its denoiser on top of a run's text encoder, and a text encoder on top of a run's denoiser."""
    for begun, tune in ((case.run, "denoiser_lora"), (case.denoiser, "text_encoder_lora")):
        keys = [*small_keys(case), f"prompts.path={prompts}", f"tuned.a={begun}", f"tune={tune}", "gradient.k=1"]
        job = train.load(configure("train", *keys))
        nudge(job.learners)
        folder = tmp_path / tune
        save_run(job, folder)
        fresh, mix = case.model(), Mix({"a": folder})
        schedule = mix.schedule(fresh)
        mix.load_denoiser(fresh)
        ours, theirs = embeds(fresh, "a"), embeds(job.model, job.schedule.encoders[0])
        assert_same(ours, theirs)
        assert schedule.late == {"a": 1.0}
        for key, value in plain_state(job.model.denoiser).items():
            torch.testing.assert_close(fresh.denoiser.state_dict()[key], value, rtol=0, atol=1e-6)


@torch.no_grad()
def embeds(model, reader: str) -> list[torch.Tensor]:
    """One prompt at a time, as what is remembered is encoded: batches round otherwise."""
    branches = [model.encode([prompt], None, reader, (64, 64)).prompt for prompt in PROMPTS]
    return list(Branch.cat(branches).mixed.values())


def assert_same(ours, theirs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def nudge(learners) -> None:
    generator = torch.Generator().manual_seed(8)
    for learner in learners:
        for parameter in learner.parameters:
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def test_a_record_that_no_run_wrote_is_one_line(tmp_path):
    """It may come from strangers: another format, or keys that are missing."""
    for text, line in (
        ('{"format": 9}', "format=9 must be 2"),
        ('{"format": 2, "base": {}}', "must have family, as runs write it"),
    ):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(UsageError, match=line):
            RunRecord.read(tmp_path)
