"""`dry_run=true` without weights: what it predicts of a small model against the plan of that model with its weights."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from random_models import tiny_layout, tokenizer_of

from tests.conftest import PROMPTS, QUICK
from tests.families.conftest import SCORED
from textcraftor.errors import UsageError
from textcraftor.models.layout import build_pipeline
from textcraftor.rewards.total import load_rewards
from textcraftor.training import prediction
from textcraftor.training.activations import Activations
from textcraftor.training.job import updating_bytes
from textcraftor.training.memory import bytes_of, plan_memory
from textcraftor.training.phases import GB
from textcraftor.training.train import load, run

PLANS = [(2, False, True), (1, False, False), (0, False, False), (0, True, False)]  # kept steps, blocks, decoder


@pytest.fixture(params=["sd15", "flux1_dev", "flux2_klein"])
def folders(request, tmp_path):
    """A small model's folder, and its configurations alone; CLIP's 77 tokens, as predictions take them."""
    layout, tokenizers = tiny_layout(request.param), {}
    for part, kind in layout.items():
        if part.startswith("tokenizer"):
            tokenizers[part] = tokenizer_of(kind)
            if kind == "CLIPTokenizer":
                tokenizers[part].model_max_length = 77
                layout[part.replace("tokenizer", "text_encoder")]["max_position_embeddings"] = 77
    torch.manual_seed(0)
    for name in ("whole", "bare"):
        build_pipeline(layout, tokenizers).save_pretrained(tmp_path / name)
    for file in (tmp_path / "bare").rglob("*.safetensors"):
        file.unlink()
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, "a blue circle", "a large gray ring", "a green star"]))
    return request.param, tmp_path


def config_of(configure, folders, *overrides: str):
    name, folder = folders
    quick = [key for key in QUICK if not key.startswith("gradient")]
    keys = [f"model={name}", *quick, *SCORED, f"prompts.path={folder / 'prompts.txt'}", "gradient.k=2"]
    size = ["sampling.height=128", "sampling.width=128", "memory.budget=64", "tune=text_encoder_lora"]
    return configure("train", *keys, *size, f"model.layout={folder / 'bare'}", *overrides)


@pytest.fixture
def measured(monkeypatch) -> list[Activations]:
    """What predictions measure, once for all of them in a test.

    Their scorers are those that the run really has; sizes are known of published ones alone.
    """
    found = list[Activations]()

    def once(method, prompt):
        found.extend([] if found else [Activations(method, prompt)])
        return found[0]

    monkeypatch.setattr(prediction, "Activations", once)
    monkeypatch.setattr(
        prediction, "skeleton_rewards", lambda config, *_: (copy.deepcopy(load_rewards(config)).to("meta"), [])
    )
    return found


def test_the_predicted_peak_is_that_of_the_plan_with_weights(configure, folders, measured):
    """Within 15 %, weights and all; and of the activations alone, which the weights could hide, for every plan.

    A language model's mask makes torch's CPU compute attention plainly, which GPUs do not: it is counted as theirs.
    """
    predicted, unknown = prediction.predict(config_of(configure, folders, "model.path=nobody/has-this"))
    assert unknown == []
    job = load(config_of(configure, folders, f"model.path={folders[1] / 'whole'}"))
    model, costs = job.model, job.objective.costs()
    readers = (one for name in model.readers for one in model.encoders(name).values())
    resident = bytes_of([model.denoiser, model.vae, job.rewards, *readers])
    with prediction.fused_attention() if folders[0] == "flux2_klein" else contextlib.nullcontext():
        plan = plan_memory(64, model.device, costs, 2, updating_bytes(job.learners, 0.0), resident=resident)
    assert predicted.predicted == pytest.approx(plan.predicted, rel=0.15)
    assert (predicted.kept_steps, predicted.decoder, predicted.micro_batch) == (2, True, 2)
    with prediction.fused_attention():
        for chosen in PLANS:
            ours, theirs = (one.peak(*chosen, 2) for one in (measured[0], costs))
            assert ours == pytest.approx(theirs, rel=0.15), chosen


@pytest.mark.parametrize("folders", ["flux1_dev"], indirect=True)
def test_a_tight_budget_takes_text_encoders_off_the_device_and_says_which(configure, folders, measured, tmp_path):
    """The largest first, before activations are computed again; and nothing is written."""
    keys = ["model.path=nobody/has-this", "tune=denoiser_lora", "dry_run=true", f"run_dir={tmp_path / 'run'}"]
    roomy = prediction.predict(config_of(configure, folders, *keys))[0]
    assert {*roomy.places.values()} == {"resident"}
    tight = f"memory.budget={(roomy.predicted - 100) / GB!r}"
    plan = prediction.predict(config_of(configure, folders, *keys, tight))[0]
    away = {part: place for part, place in plan.places.items() if place != "resident"}
    assert away == {"text_encoder_2": "while_it_works"}, "the T5 alone, and this machine has room for it"
    assert (plan.kept_steps, plan.blocks, plan.decoder) == (roomy.kept_steps, roomy.blocks, roomy.decoder)
    assert plan.predicted < roomy.predicted
    said = run(config_of(configure, folders, *keys, tight), tmp_path / "run")
    assert "; text_encoder_2 (0.00 GB) on the device only while it works; predicted peak" in said
    assert "nobody/has-this is not on this disk" in said
    assert not (tmp_path / "run").exists()
    assert len(measured) == 1


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere", "nowhere is neither a folder with a model_index.json nor one of flux1_dev"),
        ("nowhere/x.safetensors", "model.path=nowhere/x.safetensors does not exist"),
        ("./nowhere", "model.path=./nowhere does not exist"),
    ],
)
def test_a_model_whose_layout_nothing_says_is_one_line(configure, tmp_path, path, said):
    keys = ["model=toybox", *QUICK, "dry_run=true", f"model.path={path}", "rewards=aesthetic"]
    with pytest.raises(UsageError, match=said):
        run(configure("train", *keys), tmp_path / "run")
