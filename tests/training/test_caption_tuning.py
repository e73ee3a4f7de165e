"""Tuning on captions: its loss against published formulas, its gradient, its memory, its resume, and that it learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from safetensors.torch import load_file

from textcraftor.config.resume import resumed_config
from textcraftor.data.blend import Example
from textcraftor.errors import UsageError
from textcraftor.models.model import Model
from textcraftor.toybox.world2.records import write_records
from textcraftor.training import train
from textcraftor.training.checks import split_prompts
from textcraftor.training.counting import LiveBytes
from textcraftor.training.densities import Densities
from textcraftor.training.interrupt import Interrupt
from textcraftor.training.latents import bucket_sizes, nearest
from textcraftor.training.loop import tune
from textcraftor.training.phases import Phases
from textcraftor.training.pictures import Pictures
from textcraftor.training.tune_captions import check, load, run

SMALL = (
    "training.steps=4",
    "training.batch_size=4",
    "training.warmup=1",
    "training.checkpoint_every=2",
    "sampling.steps=2",
    "evaluation.prompts=2",
    "evaluation.seeds=[0]",
    "watch.prompts=2",
    "watch.seeds=[0]",
    "watch.every=2",
    "rewards=clip",
    "tracker=null",
    "device=cpu",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_records(folder, 12, seed=5)
    return folder


def test_runs_from_pictures_watch_and_evaluate_what_other_runs_do(configure, world):
    """Else their figures on the way could not be compared."""
    config = configure("train", "gradient=direct", f"data.path={world}")
    pictures = Pictures.read(config)
    assert (pictures.evaluated, pictures.watched) == split_prompts(config)[1:]


@pytest.fixture
def job(configure, world, tmp_path):
    return load(configure("tune-captions", *SMALL, f"data.path={world}"), tmp_path / "latents")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_targets_and_weights_are_the_published_ones(model, kind):
    """Epsilon, or alpha eps - sigma x (Salimans & Ho, appendix D); min(SNR, 5) over SNR or SNR + 1 (Hang et al.)."""
    model.pipeline.scheduler = scheduler = DDIMScheduler(prediction_type=kind)
    model = Model(model.pipeline)
    schedule = model.noise_schedule
    latents, noise = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    examples = [Example(0, "", 0, level) for level in (0.0, 0.125, 0.25, 0.5, 0.75, 0.9999)]
    t = Densities(noise_bias=1.0).timesteps(model, examples)
    assert t.tolist() == [999, 875, 750, 500, 250, 0]
    assert Densities(noise_bias=2.0).timesteps(model, [Example(0, "", 0, 0.5)]).tolist() == [750]
    alpha = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    v = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    torch.testing.assert_close(schedule.target(latents, noise, t), noise if kind == "epsilon" else v)
    snr = (alpha / (1 - alpha)).flatten()
    torch.testing.assert_close(
        Densities(min_snr=5.0).weights(schedule, t),
        snr.clamp(max=5) / (snr if kind == "epsilon" else snr + 1),
        rtol=1e-4,
        atol=1e-6,
    )
    assert Densities(min_snr=None).weights(schedule, t).tolist() == [1.0] * 6


def begin(job, state) -> None:
    """Gradients are there before anything is counted, as a plan has it."""
    state.learn(0)
    job.model.checkpoint_blocks(state.plan.blocks, decoder=False)
    for parameter in state.parameters:
        parameter.grad = torch.zeros_like(parameter)


def learn(job, state) -> None:
    job.objective.gradient(state, range(4), 4, Phases(job.model.device))


def gradients(state) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in state.parameters])


def test_the_plan_predicts_its_peak_and_changes_no_gradient(job):
    """All at once, block by block, and in parts of two: the same gradient within rounding; live bytes within 15 %."""
    state, costs = job.state(), job.objective.costs()
    begin(job, state)
    learn(job, state)
    whole = gradients(state)
    for plan in (state.plan, replace(state.plan, blocks=True), replace(state.plan, micro_batch=2)):
        state.plan = plan
        begin(job, state)
        with LiveBytes() as live:
            learn(job, state)
        found = gradients(state)
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item())
        predicted = costs.peak(plan.kept_steps, plan.blocks, plan.decoder, plan.micro_batch)
        assert predicted == pytest.approx(live.peak, rel=0.15), plan


def test_training_on_one_batch_lowers_its_loss(job, monkeypatch):
    state, objective = job.state(), job.objective
    batch = objective.draw(0, 4)
    monkeypatch.setattr(type(objective.draw), "__call__", lambda draw, step, size: batch)
    losses: list[float] = []
    pace = replace(job.pace, steps=6, watch_every=99, checkpoint_every=99)
    tune(
        objective,
        state,
        pace,
        lambda step, line: losses.append(line["loss"]),
        lambda _: [],
        lambda _: None,
        Interrupt(),
    )
    assert losses[-1] < losses[0]


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(configure, world, tmp_path):
    """Through the command: records, latents, checkpoints, report; a whole text encoder and a denoiser's adapters."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    adapters = "tune.denoiser.lora={rank: 2, alpha: 2.0, target_modules: auto, layers: null}"
    keys = (*SMALL, f"data.path={world}", "tune=both", adapters, "captions=p65")
    run(configure("tune-captions", *keys, f"run_dir={whole}"), whole)
    run(configure("tune-captions", *keys, f"run_dir={parts}", "training.steps=2"), parts)
    run(resumed_config("tune-captions", [f"resume={parts}", "training.steps=4"]), parts)
    for file in sorted(whole.glob("last/*/*.safetensors")):
        ours, theirs = load_file(file), load_file(parts / file.relative_to(whole))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), file
    assert not (whole / "latents").exists(), "a finished run needs them no more"
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["squared_error"] > 0 for line in lines)
    assert (whole / "report.html").exists()


def test_pictures_fall_into_the_bucket_of_their_shape_and_broken_ones_are_skipped(configure, world, tmp_path):
    sizes = bucket_sizes(64, 64, 16, 2.0)
    assert sizes[0] == (64, 64)
    assert all(h % 16 == w % 16 == 0 and h * w <= 64 * 64 and 0.5 <= w / h <= 2 for h, w in sizes)
    assert nearest(Image.new("RGB", (200, 100)), sizes) == (48, 80)
    folder = tmp_path / "mixed"
    write_records(folder, 5, seed=6)
    Image.open(folder / "00001.png").resize((120, 60)).save(folder / "00001.png")
    (folder / "00002.png").write_bytes(b"no picture")
    config = configure("tune-captions", *SMALL, f"data.path={folder}")
    job = load(config, tmp_path / "latents")
    draw, latents = job.objective.draw, job.objective.latents
    assert [tuple(latents[i].shape[-2:]) for i in range(4)] == [(16, 16), (12, 20), (16, 16), (16, 16)]
    assert [record.key for record in draw.records] == ["00000.png", "00001.png", "00003.png", "00004.png"]
    whole = torch.from_numpy(np.array(Image.open(folder / "00000.png"))).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        encoded = job.model.vae.encode(whole).latent_dist.mean * job.model.vae.config.scaling_factor
    torch.testing.assert_close(latents[0], encoded[0], rtol=1e-3, atol=1e-3)
    for file in folder.glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UsageError, match="none of 5 pictures can be read"):
        load(config, tmp_path / "again")


def test_a_batch_of_several_shapes_has_the_gradient_of_its_pictures(configure, tmp_path):
    """Together as one by one, to rounding; and no picture is drawn more often than another."""
    folder = tmp_path / "mixed"
    write_records(folder, 5, seed=6)
    for name, size in (("00001.png", (120, 60)), ("00003.png", (60, 120))):
        Image.open(folder / name).resize(size).save(folder / name)
    job = load(configure("tune-captions", *SMALL, f"data.path={folder}"), tmp_path / "latents")
    objective = job.objective
    batches = [[example.index for example in objective.draw(step, 4)] for step in range(5)]
    assert np.bincount(np.ravel(batches)).tolist() == [4] * 5
    assert len({objective.latents.size_of(index) for index in batches[0]}) > 1, "one shape alone proves nothing"
    state = job.state()
    begin(job, state)
    learn(job, state)
    whole = gradients(state)
    begin(job, state)
    for row in range(4):
        objective.gradient(state, [row], 4, Phases(job.model.device))
    torch.testing.assert_close(gradients(state), whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item())


def test_rewards_from_pictures_crop_them_to_the_size_of_sampling(configure, tmp_path):
    """Latents of another shape would not fit the noise."""
    folder = tmp_path / "mixed"
    write_records(folder, 5, seed=6)
    Image.open(folder / "00001.png").resize((120, 60)).save(folder / "00001.png")
    config = configure("train", *SMALL, "gradient=direct", f"data.path={folder}")
    latents = train.load(config, tmp_path / "cache").objective.draw.latents
    assert [latents.size_of(index) for index in range(5)] == [(64, 64)] * 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("captions.choose=best", r"captions.choose=best must be one of random, all, first"),
        ("captions.p=1.2", r"captions.p=1.2 must be at most 1"),
        ("captions.dropout=-1", r"captions.dropout=-1 must be at least 0"),
        ("data.path=nowhere", r"data.path=nowhere does not exist: give a folder"),
        ("data.captions=[nowhere]", r"data.captions=nowhere does not exist"),
        ("data.letters.path=nowhere", r"data.path=nowhere does not exist"),
        ("denoising.min_snr=0", r"denoising.min_snr=0 must be above 0"),
        ("data.aspect_ratio=.5", r"data.aspect_ratio=0.5 must be at least 1"),
        ("tune.denoiser.lr=0", r"tune.denoiser.lr=0 must be auto or a number above 0"),
    ],
)
def test_what_cannot_work_is_refused_before_any_model_loads(configure, world, tmp_path, override, message):
    with pytest.raises(UsageError, match=message):
        check(configure("tune-captions", f"data.path={world}", override), tmp_path)


def test_held_out_captions_are_never_learned_from(configure, world, tmp_path):
    keys = (*SMALL, f"data.path={world}")
    job = load(configure("tune-captions", *keys, "prompts.held_out=null", "data.held_out=4"), tmp_path)
    learned = {record.caption for record in job.objective.draw.records}
    assert len(job.objective.draw.records) == 8
    assert not learned & {*job.evaluated, *job.watched}
    with pytest.raises(UsageError, match="no record has such captions; there are descriptive, short"):
        load(configure("tune-captions", *keys, "captions.kind=long"), tmp_path / "more")


def test_pictures_whose_caption_is_held_out_are_not_learned_from(configure, tmp_path):
    """Whoever else has that caption; and too few different captions are refused in one line."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for number in range(9):
        Image.new("RGB", (64, 64), (25 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {('red', 'blue', 'green')[number % 3]} star")
    keys = (*SMALL, f"data.path={folder}", "prompts.held_out=null", "data.held_out=2", "captions.p=0")
    pictures = Pictures.read(configure("tune-captions", *keys))
    assert len(pictures.records) == 3
    assert len({record.caption for record in pictures.records.records}) == 1
    for number in range(9):
        (folder / f"{number}.txt").write_text("a red star")
    with pytest.raises(UsageError, match="1 different captions are held out and 0 pictures left to learn from"):
        Pictures.read(configure("tune-captions", *keys))


def test_rewards_are_learned_from_real_pictures_too(configure, world, tmp_path):
    """gradient=direct: one call of the denoiser a step, from the latents of the captioned pictures; and it learns."""
    small = [key for key in SMALL if not key.startswith("rewards")]
    keys = (*small, "gradient=direct", "rewards=aesthetic", "watch.every=4", "training.warmup=0", "optim.lr=3e-5")
    with pytest.raises(UsageError, match=r"data.path is needed: give a folder of pictures"):
        train.check(configure("train", *keys), tmp_path)
    folder = tmp_path / "run"
    train.run(configure("train", *keys, f"data.path={world}", f"run_dir={folder}"), folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["denoiser_calls"], line["gradient_steps"]) for line in lines] == [(1, 1)] * 4
    assert not (folder / "latents").exists()
    job = train.load(configure("train", *keys, f"data.path={world}"), tmp_path / "latents")
    objective, state, losses = job.objective, job.state(), list[float]()
    prompts, _ = objective.draw(0, 4)
    assert set(prompts) <= {record.caption for record in objective.draw.draw.records}
    clean = objective.draw.clean(0, 4, [2])
    index = objective.draw.draw(0, 4)[2].index
    assert torch.equal(clean[0], objective.draw.latents[index])
    batch, rng = objective.draw.draw(0, 4), np.random.default_rng
    fixed = replace(objective, draw=Fixed(objective.draw, batch, rng))
    pace = replace(job.pace, steps=6, watch_every=99, checkpoint_every=99)
    log = lambda step, line: losses.append(line["loss"])  # noqa: E731
    tune(fixed, state, pace, log, lambda _: [], lambda _: None, Interrupt())
    assert losses[-1] < losses[0], "minus the reward"


class Fixed:
    """The same pictures, captions, noise and noise level in every step."""

    def __init__(self, draw, batch, rng) -> None:
        self.draw, self.batch, self.new_rng = draw, batch, rng
        self.prompts = draw.prompts

    def __call__(self, step, batch_size):
        return [example.caption for example in self.batch], [example.noise_seed for example in self.batch]

    def clean(self, step, batch_size, rows):
        return torch.stack([self.draw.latents[self.batch[row].index] for row in rows])

    def rng(self, step):
        return self.new_rng(0)
