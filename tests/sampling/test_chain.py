"""The chain against the stock diffusers pipeline, under every sampler and encoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.conftest import PROMPTS, WEIGHTS, add_text_encoder
from textcraftor.inference.generate import Sampling, generate
from textcraftor.models.base import Branch
from textcraftor.models.families.diffusion import SCHEDULERS
from textcraftor.models.saving import save_whole
from textcraftor.models.tuned import load_text_encoders
from textcraftor.sampling.conditioning import ConditioningSchedule

SEEDS = [7, 8, 9]
JOBS = list(zip(PROMPTS, SEEDS, strict=True))


@pytest.fixture
def changed(model, tmp_path):
    """A model with a second encoder that differs from the original, and the folder that it was saved to."""
    tuned = add_text_encoder(model)
    with torch.no_grad():
        for index, parameter in enumerate(tuned.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter += 0.02 * noise
    save_whole(tuned, tmp_path / "text_encoder")
    return model, tmp_path / "text_encoder"


def stock_pictures(sampling: Sampling, folder=None, **options) -> torch.Tensor:
    """The same prompts and seeds through an unmodified pipeline."""
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    kind, settings = SCHEDULERS[sampling.scheduler]
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **settings)
    if folder:
        pipeline.text_encoder = type(pipeline.text_encoder).from_pretrained(folder, dtype=torch.float32)
    pictures = pipeline(
        PROMPTS,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        height=sampling.height,
        width=sampling.width,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="pt",
        **{key: value(pipeline) for key, value in options.items()},
    ).images
    return torch.as_tensor(pictures)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_pictures_equal_the_stock_pipelines(model, sampling, scheduler):
    sampling = replace(sampling, scheduler=scheduler)
    ours = generate(model, JOBS, ConditioningSchedule.original(), sampling)
    torch.testing.assert_close(ours, stock_pictures(sampling), atol=1e-4, rtol=0)


def test_the_negative_prompt_means_what_it_means_in_the_stock_pipeline(model):
    sampling = Sampling(4, 3.0, 64, 64, negative_prompt="a large gray ring")
    ours = generate(model, JOBS, ConditioningSchedule.original(), sampling)
    theirs = stock_pictures(sampling, negative_prompt=lambda _: [sampling.negative_prompt] * len(PROMPTS))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_guidance_of_one_equals_the_stock_pipeline_without_guidance(model):
    sampling = Sampling(3, 1.0, 64, 64)
    ours = generate(model, JOBS, ConditioningSchedule.original(), sampling)
    torch.testing.assert_close(ours, stock_pictures(sampling), atol=1e-4, rtol=0)


def test_a_tuned_encoder_on_all_steps_equals_the_stock_pipeline_with_its_folder(changed, sampling):
    model, folder = changed
    schedule = ConditioningSchedule.tuned_on("all", 0, sampling.timesteps(model))
    ours = generate(model, JOBS, schedule, sampling)
    torch.testing.assert_close(ours, stock_pictures(sampling, folder), atol=1e-4, rtol=0)
    untuned = generate(model, JOBS, ConditioningSchedule.original(), sampling)
    assert (ours - untuned).abs().max() > 0.05, "the two encoders make the same pictures: the test proves nothing"


def test_switching_encoders_equals_the_stock_pipelines_step_callback(changed, sampling):
    model, _ = changed
    late = 2
    schedule = ConditioningSchedule.tuned_on("last_n", late, sampling.timesteps(model))
    with torch.no_grad():
        tuned = model.encode(PROMPTS, [""] * len(PROMPTS), "tuned")

    def switch(pipeline, index, timestep, state):
        if index + 1 == sampling.steps - late:
            both = Branch.cat([tuned.negative, tuned.prompt])
            state["prompt_embeds"] = both.mixed["encoder_hidden_states"]
        return state

    theirs = stock_pictures(
        sampling,
        callback_on_step_end=lambda _: switch,
        callback_on_step_end_tensor_inputs=lambda _: ["prompt_embeds"],
    )
    torch.testing.assert_close(generate(model, JOBS, schedule, sampling), theirs, atol=1e-4, rtol=0)


def test_pictures_do_not_depend_on_batch_size_or_order(model, sampling):
    together = generate(model, JOBS, ConditioningSchedule.original(), sampling, batch_size=3)
    backwards = generate(model, JOBS[::-1], ConditioningSchedule.original(), sampling, batch_size=1)
    torch.testing.assert_close(together, backwards.flip(0), atol=1e-5, rtol=0)


def test_a_saved_encoder_comes_back_unchanged(changed):
    model, folder = changed
    load_text_encoders(model, folder.parent, "again")
    saved = model.encoders("tuned")["text_encoder"].state_dict()
    for key, value in model.encoders("again")["text_encoder"].state_dict().items():
        assert torch.equal(value, saved[key]), key


def test_the_schedule_is_keyed_on_the_noise_level_not_on_the_step(model):
    """The last 15 of 25 steps are the same noise levels at 50 steps: 30 of them, give or take one."""
    schedule = ConditioningSchedule.tuned_on("last_n", 15, Sampling(25, 3.0, 64, 64).timesteps(model))
    late = sum(schedule.weights(t) == {"tuned": 1.0} for t in Sampling(50, 3.0, 64, 64).timesteps(model))
    assert abs(late - 30) <= 1


def test_mixing_is_linear_in_both_branches(changed):
    model, _ = changed
    with torch.no_grad():
        encoded = {name: model.encode(PROMPTS, [""] * 3, name) for name in ("original", "tuned")}
    mixed = ConditioningSchedule(999, {"original": 0.4, "tuned": 0.6}, {"original": 1.0}).at(encoded, 500)
    for field in ("prompt", "negative"):
        original, tuned, found = (
            getattr(one, field).mixed["encoder_hidden_states"] for one in (encoded["original"], encoded["tuned"], mixed)
        )
        torch.testing.assert_close(found, 0.4 * original + 0.6 * tuned)
