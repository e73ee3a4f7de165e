"""v-prediction whose last noise level holds no signal, as NoobAI's SDXL: our chain, and every gradient policy."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from random_models import make_pipeline

from tests.conftest import PROMPTS, QUICK
from tests.families.conftest import SCORED
from tests.families.test_denoising import EXAMPLES, Kept
from tests.sampling.test_gradients import POLICIES
from textcraftor.errors import UsageError
from textcraftor.inference.generate import Sampling, generate
from textcraftor.models.model import Model
from textcraftor.models.tuning import add_learners
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.sampling.gradients import ddpo, direct
from textcraftor.sampling.surrogates import bridge, drtune, leap, sparse
from textcraftor.toybox.world2.records import write_records
from textcraftor.training.caption_tuning import CaptionTuning
from textcraftor.training.densities import Densities
from textcraftor.training.phases import Phases
from textcraftor.training.train import run

JOBS = [(PROMPTS[0], 3), (PROMPTS[2], 4)]
EVERY = POLICIES | {
    "noise": partial(direct, first=0.0, last=0.0),  # from the level that is all noise
    "drtune": partial(drtune, k=3),
    "sparse": partial(sparse, k=3),
    "bridge": partial(bridge, k=3),
    "leap": partial(leap, discount=0.3),
    "ddpo": ddpo,
}


PREDICTIONS = ["v_prediction", "sample", "epsilon"]


def zero_snr(prediction: str) -> EulerDiscreteScheduler:
    """As such a model's folder says: Euler's sampler."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    given = {"prediction_type": prediction, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    return EulerDiscreteScheduler(**betas, **given)


@pytest.fixture(scope="module")
def pipe():
    pipe = make_pipeline("sdxl", tiny=True)
    pipe.scheduler = zero_snr("v_prediction")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def predicting(pipe, request):
    """The same weights, whose output means something else."""
    own = pipe.scheduler
    pipe.scheduler = zero_snr(request.param)
    yield Model(pipe)
    pipe.scheduler = own


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
    check_gradient(Model(pipe), name, scheduler)


@pytest.mark.parametrize("predicting", ["sample", "epsilon"], indirect=True)
@pytest.mark.parametrize("name", [name for name in EVERY if name != "ddpo"])
def test_so_it_has_with_every_prediction_type(predicting, name):
    check_gradient(predicting, name, "euler")


def check_gradient(model: Model, name: str, scheduler: str) -> None:
    """A policy's result and its gradient are finite, and the gradient is not 0."""
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


@pytest.mark.parametrize("predicting", ["epsilon"], indirect=True)
def test_ddim_is_refused_where_it_would_divide_by_no_signal(predicting):
    """From noise that is predicted at the first level; a spacing that leaves this level out is none of it."""
    with pytest.raises(UsageError, match=r"sampling.scheduler=ddim divides by the signal.*=euler"):
        Sampling(4, 3.0, 64, 64, scheduler="ddim").timesteps(predicting)
    predicting.pipeline.scheduler.register_to_config(timestep_spacing="leading")
    assert Sampling(4, 3.0, 64, 64, scheduler="ddim").timesteps(predicting)[0] < 999


@pytest.mark.parametrize("predicting", PREDICTIONS, indirect=True)
def test_pure_noise_turns_into_clean_latents_and_back(predicting):
    """Known outputs give the clean latents and the noise; one that predicts noise cannot know them, and is finite."""
    schedule, t = predicting.noise_schedule, torch.tensor([999, 999])
    clean, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    noisy = schedule.add_noise(clean, noise, t)
    assert torch.equal(noisy, noise), "nothing of the picture is left"
    found = schedule.x0_and_noise(schedule.target(clean, noise, t), t, noisy)
    torch.testing.assert_close(found[1], noise)
    if schedule.prediction == "epsilon":
        assert torch.equal(found[0], torch.zeros_like(clean))
        torch.testing.assert_close(schedule.to_x0(noise - 1, t[0], noisy), torch.full_like(clean, 4096.0))
    else:
        torch.testing.assert_close(found[0], clean)


@pytest.mark.parametrize("predicting", PREDICTIONS, indirect=True)
def test_min_snr_weighs_every_level_by_the_published_formula(predicting):
    """min(snr, gamma), over snr for noise and over snr + 1 for v; in the limit of no signal 1 for noise, else 0."""
    schedule, t = predicting.noise_schedule, torch.tensor([999, 998, 500, 20])
    snr = torch.tensor([(signal / noise) ** 2 for signal, noise in map(schedule.level, t.double().tolist())])
    assert snr[0] == 0
    assert snr[-1] > 5, "gamma cuts nothing off: the test proves nothing"
    wanted = snr.clamp(max=5) / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[schedule.prediction]
    wanted[0] = float(schedule.prediction == "epsilon")
    torch.testing.assert_close(Densities(min_snr=5.0).weights(schedule, t), wanted, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("min_snr", [5.0, None])
@pytest.mark.parametrize("predicting", PREDICTIONS, indirect=True)
def test_caption_tuning_learns_from_every_level_together(predicting, min_snr):
    """A batch with the level that is all noise: its error is that of the target, and no gradient is lost to it."""
    kept = Kept(predicting.family.latent_shape(predicting.pipeline, (32, 32)))
    examples = [replace(example, level=level) for example, level in zip(EXAMPLES, (0.0, 0.3, 0.9, 0.0), strict=True)]
    densities = Densities(min_snr=min_snr)
    assert densities.timesteps(predicting, examples).tolist() == [999, 700, 100, 999]
    tuning = CaptionTuning(predicting, ConditioningSchedule.original(), None, kept, densities)
    predicting.denoiser.requires_grad_(True)
    losses, errors = tuning.losses(examples, Phases(predicting.device))
    gradients = torch.autograd.grad(losses.sum(), [predicting.denoiser.conv_in.weight])
    predicting.denoiser.requires_grad_(False)
    assert losses.isfinite().all()
    assert (errors > 0).all()
    assert gradients[0].isfinite().all()
    assert gradients[0].abs().sum() > 0


def test_direct_trains_such_a_model_from_pictures(pipe, configure, tmp_path):
    """The whole command, every step from the level that is all noise."""
    pipe.save_pretrained(tmp_path / "base")
    write_records(tmp_path / "world", 6, seed=5)
    keys = [key for key in QUICK if not key.startswith(("gradient", "training.ema", "evaluation.seeds"))]
    keys += ["model=sdxl", f"model.path={tmp_path / 'base'}", *SCORED, "sampling.height=64", "sampling.width=64"]
    keys += ["sampling.scheduler=euler", "gradient=direct", "gradient.first=0", "gradient.last=0", "training.warmup=0"]
    keys += [f"data.path={tmp_path / 'world'}", "data.held_out=3", "captions.p=0", "tune=text_encoder_lora"]
    keys += ["evaluation.seeds=[0]", "watch.seeds=[0]", "tracker=null", f"run_dir={tmp_path / 'run'}"]
    run(configure("train", *keys), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert all(line["grad_norm"] > 0 for line in lines)
