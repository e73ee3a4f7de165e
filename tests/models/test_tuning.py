"""What learns and what is saved: adapters that stock loaders take, an original that stays as it was."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.conftest import PROMPTS, WEIGHTS, load
from textcraftor.errors import UsageError
from textcraftor.models.loading import freeze
from textcraftor.models.model import Model
from textcraftor.models.tuned import load_denoiser, load_text_encoders
from textcraftor.models.tuning import add_learners, load_state, state_of

TUNE = {
    "text_encoder": {
        "lora": {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "fc1"], "layers": [1, 2]},
        "lr": 1e-4,
        "span": [0, 1],
    },
    "denoiser": {"lora": {"rank": 2, "alpha": 2, "target_modules": ["to_q", "to_out.0"]}, "lr": 1e-4, "span": [0, 1]},
}
T = torch.tensor(500)


@pytest.fixture
def adapted(model, tmp_path):
    """A model whose adapters do something, and the folder that they were saved to."""
    learners = add_learners(model, TUNE)
    with torch.no_grad():
        for index, parameter in enumerate(parameter for learner in learners for parameter in learner.parameters):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    for learner in learners:
        learner.save(tmp_path)
    return model, learners, tmp_path


def load_tuned(model: Model, folder: Path, strength: float = 1.0) -> None:
    load_text_encoders(model, folder, "again", strength)
    load_denoiser(model, folder, strength)


@torch.no_grad()
def outputs(model: Model, encoder: str) -> tuple[torch.Tensor, torch.Tensor]:
    branch = model.encode(PROMPTS, None, encoder).prompt
    return branch.mixed["encoder_hidden_states"], model.predict(model.noise([1, 2, 3], 64, 64), T, branch)


def test_adapters_come_back_unchanged_and_leave_the_original_alone(adapted, model):
    tuned, _, folder = adapted
    fresh = load()
    untouched = outputs(fresh, "original")[0]
    load_tuned(fresh, folder)
    (ours, our_output), (theirs, their_output) = outputs(tuned, "tuned"), outputs(fresh, "again")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(our_output, their_output, rtol=0, atol=1e-4)  # merged into the weights
    torch.testing.assert_close(outputs(fresh, "original")[0], untouched, rtol=0, atol=0)
    assert (outputs(fresh, "again")[0] - untouched).abs().max() > 1e-2, "the adapters do nothing: this proves nothing"
    assert all(not parameter.requires_grad for parameter in fresh.denoiser.parameters())


def test_half_the_strength_is_half_the_adapters(adapted):
    """Halved in the folder's own tensors, or when it is loaded: the same model."""
    _, learners, folder = adapted
    for learner in learners:
        with torch.no_grad():
            for name, parameter in learner.named_parameters():
                if "lora_B" in name:
                    parameter /= 2
        learner.save(folder / "halved")
    found = []
    for run, strength in ((folder, 0.5), (folder / "halved", 1.0)):
        fresh = load()
        load_tuned(fresh, run, strength)
        found.append(outputs(fresh, "again"))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_any_pipelines_load_lora_weights_takes_the_folders(adapted):
    tuned, _, folder = adapted
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline", safety_checker=None)
    pipeline.load_lora_weights(folder / "text_encoder_lora")
    pipeline.load_lora_weights(folder / "unet_lora")
    tokens = pipeline.tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        embeds = pipeline.text_encoder(tokens.input_ids).last_hidden_state
        output = pipeline.unet(tuned.noise([1, 2, 3], 64, 64), T, encoder_hidden_states=embeds).sample
    for ours, theirs in zip(outputs(tuned, "tuned"), (embeds, output), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_layers_and_targets_choose_what_learns(adapted):
    _, learners, _ = adapted
    names = [name for name, _ in learners[0].named_parameters()]
    assert names
    assert all(".layers.1." in name or ".layers.2." in name for name in names)
    assert all("q_proj" in name or "fc1" in name for name in names)
    with pytest.raises(UsageError, match=r"tune.denoiser.lora: no layer matches .* its linear layers end in .*to_q"):
        add_learners(load(), {"denoiser": wrong_target()})


def test_adapters_of_embeddings_are_refused_before_training():
    options = copy.deepcopy(TUNE["text_encoder"])
    options["lora"] |= {"target_modules": ["token_embedding"], "layers": None}
    with pytest.raises(UsageError, match=r"tune.text_encoder.lora: .* means .*token_embedding, an embedding"):
        add_learners(load(), {"text_encoder": options})


def wrong_target() -> dict:
    options = copy.deepcopy(TUNE["denoiser"])
    options["lora"]["target_modules"] = ["q_projection"]
    return options


def test_what_learns_is_float32_and_the_rest_is_stored_as_asked(model):
    learners = add_learners(model, TUNE)
    freeze(model, torch.bfloat16)
    assert {parameter.dtype for learner in learners for parameter in learner.parameters} == {torch.float32}
    learning = {id(parameter) for learner in learners for parameter in learner.parameters}
    encoders = [encoder for name in model.readers for encoder in model.encoders(name).values()]
    frozen = [p for part in (model.denoiser, model.vae, *encoders) for p in part.parameters()]
    assert {p.dtype for p in frozen if id(p) not in learning} == {torch.bfloat16}
    freeze(model, torch.float16)
    assert {p.dtype for p in model.vae.parameters()} == {torch.float32}, "float16 overflows in the VAE"


def test_a_state_comes_back_by_name(adapted):
    model, learners, _ = adapted
    state = state_of(learners)
    before = outputs(model, "tuned")
    with torch.no_grad():
        for learner in learners:
            for parameter in learner.parameters:
                parameter.zero_()
    load_state(learners, state)
    for ours, theirs in zip(outputs(model, "tuned"), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_adapters_for_another_model_are_refused(adapted, tmp_path):
    folder = adapted[2]
    (folder / "unet_lora" / "pytorch_lora_weights.safetensors").unlink()
    fresh = load()
    with pytest.raises(UsageError, match=r"holds no pytorch_lora_weights.safetensors"):
        load_denoiser(fresh, folder)
    with pytest.raises(UsageError, match="holds no text_encoder and no text_encoder_lora"):
        load_text_encoders(fresh, tmp_path / "elsewhere", "again")
