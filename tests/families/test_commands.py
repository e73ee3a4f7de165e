"""Commands on families that are no Stable Diffusion: evaluation, resuming, several processes, the app."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import PROMPTS
from tests.enhancement.test_enhance import QUICK as ENHANCING
from tests.families.conftest import SCORED, small_keys
from tests.training.test_processes import first_moments, processes
from textcraftor.config.resume import resumed_config
from textcraftor.enhancement import enhance
from textcraftor.enhancement.opening import read_states
from textcraftor.errors import UsageError
from textcraftor.evaluation import run as evaluation
from textcraftor.evaluation.suite import read_rows_of
from textcraftor.inference.app import Studio
from textcraftor.inference.generate import Sampling, generate
from textcraftor.inference.mix import Mix
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.training.train import check, run

LOOK = ["sampling.steps=2", "sampling.height=64", "sampling.width=64", *SCORED, "device=cpu"]


@pytest.mark.parametrize("case", ["flux2_klein"], indirect=True)
def test_evaluate_compares_a_run_with_its_base(case, configure, prompts, tmp_path):
    keys = [f"model={case.name}", f"model.path={case.base}", *LOOK, f"prompts.path={prompts}", "limit=2", "seeds=[0,1]"]
    folder = tmp_path / "found"
    evaluation.run(configure("evaluate", *keys, f"tuned.a={case.run}", f"run_dir={folder}"), folder)
    ours, theirs = (
        np.array([row["aesthetic"] for row in read_rows_of(one)]).reshape(2, 2) for one in (folder, folder / "base")
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert np.abs(ours - theirs).max() > 1e-4, "the tuned encoder changes nothing: the test proves nothing"
    assert summary["difference"]["aesthetic"]["mean"] == pytest.approx((ours - theirs).mean(), abs=1e-6)
    assert summary["base"]["aesthetic"] == pytest.approx(theirs.mean(), abs=1e-6)
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("case", "tune"),
    [("sdxl", "text_encoders"), ("flux2_klein", "text_encoder_lora")],
    indirect=["case"],
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(case, tune, configure, prompts, tmp_path):
    keys = [*small_keys(case), f"tune={tune}", f"prompts.path={prompts}", "gradient.k=1", "training.warmup=1"]
    keys += ["training.ema_decay=0.9", "training.checkpoint_every=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(configure("train", *keys, "training.steps=4", f"run_dir={whole}"), whole)
    run(configure("train", *keys, f"run_dir={parts}"), parts)
    begun = {file: load_file(file) for file in parts.glob("last/*/*.safetensors")}
    run(resumed_config("train", [f"resume={parts}", "training.steps=4"]), parts)
    files = sorted(whole.glob("last/*/*.safetensors"))
    assert len(files) == (2 if tune == "text_encoders" else 1)
    for file in files:
        twin = parts / file.relative_to(whole)
        ours, theirs = load_file(file), load_file(twin)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), file
        assert any(not torch.equal(value, begun[twin][key]) for key, value in theirs.items()), "nothing was learned"


@pytest.mark.parametrize("case", ["flux1_dev"], indirect=True)
def test_two_processes_have_one_processs_gradient(case, configure, prompts, tmp_path):
    """The first moments after one step are the clipped gradient; one process has two prompts, the other one."""
    keys = [*small_keys(case), "tune=text_encoder_lora", f"prompts.path={prompts}", "gradient.k=1"]
    keys += [
        "training.steps=1",
        "training.batch_size=3",
        "training.warmup=0",
        "evaluation.seeds=[0]",
        "watch.seeds=[0]",
    ]
    alone, both = tmp_path / "alone", tmp_path / "both"
    run(configure("train", *keys, f"run_dir={alone}"), alone)
    processes(2, "train", *keys, f"run_dir={both}", cwd=tmp_path)
    ours, theirs = first_moments(alone, both)
    assert ours.norm() > 0
    assert (ours - theirs).norm() < 1e-4 * ours.norm()


@pytest.mark.parametrize("case", ["sd35_medium"], indirect=True)
def test_the_apps_studio_shows_and_hands_over_a_mix(case, configure, tmp_path):
    """Its pictures are those of the mix, before and after; the download alone makes the later one again."""
    keys = [f"model={case.name}", f"model.path={case.base}", *LOOK, f"runs=[{case.run}]"]
    studio = Studio.load(configure("app", *keys), tmp_path)
    before, after, scores = studio.pair(PROMPTS[0], 3, 2, 0.6)
    assert "aesthetic" in scores
    sampling = Sampling(2, studio.sampling.guidance_scale, 64, 64, scheduler="euler")

    def picture(mix: Mix | None) -> np.ndarray:
        model = case.model()
        schedule = mix.schedule(model) if mix else ConditioningSchedule.original()
        return np.rint(generate(model, [(PROMPTS[0], 3)], schedule, sampling)[0].permute(1, 2, 0).numpy() * 255)

    def shown(image) -> np.ndarray:
        return np.asarray(image, dtype=float)[::4, ::4]  # enlarged by whole pixels

    weights = {"run": 0.6}
    assert np.abs(shown(before) - picture(None)).max() <= 1
    assert np.abs(shown(after) - picture(Mix({"run": case.run}, weights))).max() <= 1
    assert np.abs(shown(after) - shown(before)).max() > 1, "the mix changes nothing: the test proves nothing"
    with zipfile.ZipFile(studio.download(2, 0.6)) as taken:
        taken.extractall(tmp_path / "taken")
    folder = tmp_path / "taken" / "mix"
    merged = picture(Mix({"run": case.run}, weights, merge=True))
    assert np.abs(picture(Mix({"x": folder})) - merged).max() <= 1
    assert {path.name for path in Path(folder).iterdir()} >= {"run.json", "mix.json", "text_encoder.safetensors"}


@pytest.mark.parametrize("case", ["flux2_klein"], indirect=True)
def test_a_flow_may_learn_by_policy_gradient(case, configure, prompts, tmp_path):
    """Its own sampler can draw steps, which of diffusion models ddim alone can."""
    keys = [*small_keys(case), f"prompts.path={prompts}", "tune=text_encoder_lora", "gradient=ddpo"]
    check(configure("train", *keys), tmp_path / "run")
    with pytest.raises(UsageError, match=r"sampling.scheduler=dpmsolver\+\+: gradient=ddpo draws its steps"):
        check(configure("train", *keys, "sampling.scheduler=dpmsolver++"), tmp_path / "run")


@pytest.mark.parametrize("case", ["sdxl", "flux1_dev"], indirect=True)
def test_enhance_learns_adapters_of_any_denoiser(case, configure, prompts, tmp_path):
    folder = tmp_path / "enhanced"
    keys = [*ENHANCING, f"model={case.name}", f"model.path={case.base}", *LOOK, f"prompts.path={prompts}", "limit=2"]
    enhance.run(configure("enhance", *keys, "prompts.held_out=null", "rounds=1", f"run_dir={folder}"), folder)
    assert json.loads((folder / "summary.json").read_text())["rounds"][0]["kept"] == 2
    state = read_states(folder / "round_1" / "run")["denoiser"]
    assert max(float(one.abs().max()) for name, one in state.items() if ".lora_B." in name) > 1e-5
