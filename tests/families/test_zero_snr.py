"""v-prediction whose last noise level holds no signal, as NoobAI's SDXL: our chain, and every gradient policy."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from random_models import make_pipeline

from tests.conftest import PROMPTS
from tests.sampling.test_gradients import POLICIES
from textcraftor.inference.generate import Sampling, generate
from textcraftor.models.model import Model
from textcraftor.models.tuning import add_learners
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.sampling.gradients import ddpo, direct
from textcraftor.sampling.surrogates import bridge, drtune, leap, sparse

JOBS = [(PROMPTS[0], 3), (PROMPTS[2], 4)]
EVERY = POLICIES | {
    "noise": partial(direct, first=0.0, last=0.0),  # from the level that is all noise
    "drtune": partial(drtune, k=3),
    "sparse": partial(sparse, k=3),
    "bridge": partial(bridge, k=3),
    "leap": partial(leap, discount=0.3),
    "ddpo": ddpo,
}


@pytest.fixture(scope="module")
def pipe():
    """As such a model's folder says: Euler's sampler."""
    pipe = make_pipeline("sdxl", tiny=True)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    given = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    pipe.scheduler = EulerDiscreteScheduler(**betas, **given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_pictures_equal_the_stock_pipelines(pipe, name):
    sampling = Sampling(4, 3.0, 64, 96, scheduler=name)
    model = Model(pipe)
    assert model.noise_schedule.level(999.0) == (0.0, 1.0), "no signal at all"
    ours = generate(model, JOBS, ConditioningSchedule.original(), sampling)
    own, kind = pipe.scheduler, {"euler": EulerDiscreteScheduler, "ddim": DDIMScheduler}[name]
    pipe.scheduler = kind.from_config(own.config, **({"clip_sample": False} if name == "ddim" else {}))
    generators = [torch.Generator().manual_seed(seed) for _, seed in JOBS]
    given = {"guidance_scale": 3.0, "height": 64, "width": 96, "num_inference_steps": 4, "output_type": "pt"}
    theirs = pipe(prompt=[prompt for prompt, _ in JOBS], generator=generators, **given).images
    assert pipe.scheduler.timesteps[0] == 999, "the first step is that of all noise"
    pipe.scheduler = own
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scheduler", ["euler", "ddim"])
@pytest.mark.parametrize("name", EVERY)
def test_every_policy_has_a_finite_gradient(pipe, name, scheduler):
    if (name, scheduler) == ("ddpo", "euler"):
        pytest.skip("draws its steps, which ddim alone can do here")
    model = Model(pipe)
    learners = add_learners(model, {"text_encoder_2": {"lora": None, "lr": 1e-4, "span": [0, 1]}}, size=(64, 64))
    sampling = Sampling(3, 3.0, 64, 64, scheduler=scheduler)
    clean = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    chain = sampling.chain(model, [1, 2], rng=np.random.default_rng(3), clean=clean)
    encoded = sampling.encode(model, PROMPTS[:2], ["tuned"])
    latents = EVERY[name](chain, chain.start(), partial(ConditioningSchedule(1000, {"tuned": 1.0}, {}).at, encoded))
    assert latents.isfinite().all()
    value = chain.log_prob if chain.log_prob is not None else latents.square().mean()
    gradients = torch.autograd.grad(value.sum(), learners[0].parameters)
    assert all(one.isfinite().all() for one in gradients)
    assert sum(one.abs().sum() for one in gradients) > 0
