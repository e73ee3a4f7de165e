"""The chain against the stock diffusers pipeline, and its gradient against finite differences."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.conftest import PROMPTS, WEIGHTS
from textcraftor.errors import UsageError
from textcraftor.inference.generate import Sampling, generate
from textcraftor.models.tuning import add_trainable_text_encoder, load_text_encoder, save_text_encoder
from textcraftor.sampling.chain import Chain
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.sampling.gradients import full, last_k

SEEDS = [7, 8, 9]
JOBS = list(zip(PROMPTS, SEEDS, strict=True))


@pytest.fixture
def changed(model, tmp_path):
    """A model with a second encoder that differs from the original, and the folder that it was saved to."""
    tuned = add_trainable_text_encoder(model, "tuned")
    with torch.no_grad():
        for index, parameter in enumerate(tuned.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter += 0.02 * noise
    save_text_encoder(tuned, tmp_path / "text_encoder")
    return model, tmp_path / "text_encoder"


def stock_pictures(sampling: Sampling, folder=None, **options) -> torch.Tensor:
    """The same prompts and seeds through an unmodified pipeline."""
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
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


def test_pictures_equal_the_stock_pipelines(model, sampling):
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
    schedule = ConditioningSchedule.tuned_on("all", 0, model.timesteps(sampling.steps))
    ours = generate(model, JOBS, schedule, sampling)
    torch.testing.assert_close(ours, stock_pictures(sampling, folder), atol=1e-4, rtol=0)
    untuned = generate(model, JOBS, ConditioningSchedule.original(), sampling)
    assert (ours - untuned).abs().max() > 0.05, "the two encoders make the same pictures: the test proves nothing"


def test_switching_encoders_equals_the_stock_pipelines_step_callback(changed, sampling):
    model, _ = changed
    late = 2
    schedule = ConditioningSchedule.tuned_on("last_n", late, model.timesteps(sampling.steps))
    with torch.no_grad():
        tuned = model.encode(PROMPTS, [""] * len(PROMPTS), "tuned")

    def switch(pipeline, index, timestep, state):
        if index + 1 == sampling.steps - late:
            state["prompt_embeds"] = torch.cat([tuned.negative_prompt_embeds, tuned.prompt_embeds])
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


def reward_of(model, rollout, recompute: bool = False) -> torch.Tensor:
    """A smooth function of the pictures that two prompts give, with gradients into the tuned encoder."""
    chain = Chain(model, model.timesteps(3), 2.0, recompute)
    encoded = {"tuned": model.encode(PROMPTS[:2], ["", ""], "tuned")}
    schedule = ConditioningSchedule.tuned_on("all", 0, chain.timesteps)
    latents = rollout(chain, model.noise([1, 2], 64, 64), partial(schedule.at, encoded))
    images = model.vae.decode(latents / model.vae.config.scaling_factor).sample
    return images.pow(2).mean()


@pytest.fixture
def doubled(model, monkeypatch):
    """The model in float64 with a trainable encoder.

    diffusers rounds one softmax (attention pooling) to float32 by `.float()`; finite differences need it whole.
    """
    rounded = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else rounded(x))
    for part in (model.unet, model.vae, model.text_encoders["original"]):
        part.double()
    model.text_encoders["tuned"] = copy.deepcopy(model.text_encoders["original"]).requires_grad_(True)
    return model


def encoder_gradient(model, rollout, recompute: bool = False) -> torch.Tensor:
    parameters = list(model.text_encoders["tuned"].parameters())
    gradients = torch.autograd.grad(reward_of(model, rollout, recompute), parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, gradients, strict=True)]
    )


def test_the_gradient_of_the_full_chain_equals_finite_differences(doubled):
    analytic = encoder_gradient(doubled, full)
    parameters = list(doubled.text_encoders["tuned"].parameters())
    flat = torch.nn.utils.parameters_to_vector(parameters).detach()
    for seed in (0, 1):
        direction = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        direction /= direction.norm()
        values = []
        for sign in (1, -1):
            torch.nn.utils.vector_to_parameters(flat + sign * 1e-5 * direction, parameters)
            with torch.no_grad():
                values.append(reward_of(doubled, full))
        torch.nn.utils.vector_to_parameters(flat, parameters)
        numeric = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close(analytic @ direction, numeric, rtol=1e-5, atol=1e-10)


def test_recomputing_activations_changes_no_gradient(doubled):
    kept = encoder_gradient(doubled, partial(last_k, k=2))
    recomputed = encoder_gradient(doubled, partial(last_k, k=2), recompute=True)
    torch.testing.assert_close(recomputed, kept, rtol=1e-12, atol=1e-15)


def test_last_k_over_every_step_is_the_full_chain(doubled):
    torch.testing.assert_close(
        encoder_gradient(doubled, partial(last_k, k=3)), encoder_gradient(doubled, full), rtol=1e-12, atol=1e-15
    )


def test_last_k_equals_the_full_chain_whose_early_conditioning_is_detached(doubled):
    """The gradient through the last step alone, from a second definition: every earlier latent is a constant."""

    def detached(chain, latents, conditioning_at):
        from textcraftor.sampling.chain import denoise

        latents = denoise(chain, latents, chain.timesteps[:-1], conditioning_at).detach()
        return denoise(chain, latents, chain.timesteps[-1:], conditioning_at)

    torch.testing.assert_close(
        encoder_gradient(doubled, partial(last_k, k=1)), encoder_gradient(doubled, detached), rtol=1e-12, atol=1e-15
    )


def test_k_beyond_the_chain_is_refused_with_both_numbers(model):
    chain = Chain(model, model.timesteps(3), 2.0)
    with pytest.raises(UsageError, match=r"gradient.k=4 .* sampling.steps=3"):
        last_k(chain, model.noise([0], 64, 64), lambda t: None, k=4)


def test_a_saved_encoder_comes_back_unchanged(changed):
    model, folder = changed
    load_text_encoder(model, folder, "again")
    saved = model.text_encoders["tuned"].state_dict()
    for key, value in model.text_encoders["again"].state_dict().items():
        assert torch.equal(value, saved[key]), key


def test_the_schedule_is_keyed_on_the_noise_level_not_on_the_step(model):
    """The last 15 of 25 steps are the same noise levels at 50 steps: 30 of them, give or take one."""
    schedule = ConditioningSchedule.tuned_on("last_n", 15, model.timesteps(25))
    late = sum(schedule.weights(t) == {"tuned": 1.0} for t in model.timesteps(50))
    assert abs(late - 30) <= 1


def test_mixing_is_linear_in_both_branches(changed):
    model, _ = changed
    with torch.no_grad():
        encoded = {name: model.encode(PROMPTS, [""] * 3, name) for name in ("original", "tuned")}
    mixed = ConditioningSchedule(999, {"original": 0.4, "tuned": 0.6}, {"original": 1.0}).at(encoded, 500)
    for field in ("prompt_embeds", "negative_prompt_embeds"):
        expected = 0.4 * getattr(encoded["original"], field) + 0.6 * getattr(encoded["tuned"], field)
        torch.testing.assert_close(getattr(mixed, field), expected)
