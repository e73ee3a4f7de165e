"""Tuning a flow on captions: its loss against the formulas of diffusers, and the command on two families."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from random_models import make_pipeline
from safetensors.torch import load_file

from tests.conftest import PROMPTS
from tests.families.conftest import small_keys
from textcraftor.data.blend import Example
from textcraftor.models.model import Model
from textcraftor.models.seeds import unit_noise
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.toybox.world2.records import write_records
from textcraftor.training.caption_tuning import CaptionTuning
from textcraftor.training.densities import Densities
from textcraftor.training.phases import Phases
from textcraftor.training.tune_captions import run

EXAMPLES = [Example(row, PROMPTS[row % 3], 2**45 + row, 0.5) for row in range(4)]


class Kept:
    """Latents of pictures of one size, drawn at random."""

    def __init__(self, shape) -> None:
        self.all = torch.randn(len(EXAMPLES), *shape, generator=torch.Generator().manual_seed(9))

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.all[index]

    def size_of(self, index: int) -> tuple[int, int]:
        return 32, 32


def drawn(scheme: str, example: Example) -> torch.Tensor:
    """As the training scripts of diffusers draw, with a generator that is the example's own."""
    own = int(np.random.SeedSequence((example.noise_seed, 7)).generate_state(1)[0])
    generator = torch.Generator().manual_seed(own)
    return compute_density_for_timestep_sampling(scheme, 1, 0.3, 0.8, 1.1, generator=generator)


@pytest.mark.parametrize("scheme", ["logit_normal", "mode", "cosmap", "sigma_sqrt"])
def test_the_loss_of_a_flow_is_the_published_one(scheme):
    """(v - (e - x_0))^2 at x_t = (1 - s) x_0 + s e, for s from the density and its weight of Esser et al."""
    model = Model(make_pipeline("sd35_medium", tiny=True))
    kept = Kept(model.family.latent_shape(model.pipeline, (32, 32)))
    tuning = CaptionTuning(
        model, ConditioningSchedule.original(), None, kept, Densities(1.0, 5.0, scheme, 0.3, 0.8, 1.1)
    )
    with torch.no_grad():
        losses, errors = tuning.losses(EXAMPLES, Phases(model.device))
    noise_levels = FlowMatchEulerDiscreteScheduler(shift=3.0).timesteps  # from all noise on
    wanted = []
    for example in EXAMPLES:
        t = noise_levels[int(drawn(scheme, example) * 1000)]
        s, clean = t / 1000, kept[example.index][None]
        noise = unit_noise(tuple(clean.shape), example.noise_seed)
        embeds, _, pooled, _ = model.pipeline.encode_prompt(
            example.caption, None, None, do_classifier_free_guidance=False
        )
        given = {"encoder_hidden_states": embeds, "pooled_projections": pooled, "timestep": t[None]}
        with torch.no_grad():
            velocity = model.denoiser((1 - s) * clean + s * noise, **given).sample
        error = (velocity - (noise - clean)).square().mean()
        wanted.append((error * compute_loss_weighting_for_sd3(scheme, s), error, t))
    losses_wanted, errors_wanted, timesteps = map(torch.stack, zip(*wanted, strict=True))
    assert len(timesteps.unique()) == len(EXAMPLES), "one timestep for all: the test proves nothing"
    torch.testing.assert_close(errors, errors_wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses, losses_wanted, rtol=1e-4, atol=1e-5)


def test_an_examples_timestep_does_not_depend_on_the_batch():
    model = Model(make_pipeline("flux1_dev", tiny=True))
    together, alone = (Densities().timesteps(model, some) for some in (EXAMPLES, EXAMPLES[2:3]))
    assert torch.equal(together[2:3], alone)


@pytest.mark.parametrize("case", ["sd35_medium", "flux1_dev"], indirect=True)
def test_the_command_tunes_a_flows_denoiser_on_a_few_pictures(case, configure, tmp_path):
    write_records(tmp_path / "world", 8, seed=5)
    keys = [*small_keys(case), f"data.path={tmp_path / 'world'}", "data.held_out=4", "captions.p=0"]
    folder = tmp_path / "run"
    run(configure("tune-captions", *keys, "tune=denoiser_lora", "training.warmup=0", f"run_dir={folder}"), folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["squared_error"] > 0 and line["grad_norm"] > 0 for line in lines)
    state = load_file(folder / "last" / "transformer_lora" / "pytorch_lora_weights.safetensors")
    ups = [value for key, value in state.items() if "lora_B" in key]
    assert ups
    assert all(value.abs().max() > 0 for value in ups), "adapters begin at zero, and learn"
    record = json.loads((folder / "run.json").read_text())
    assert record["parts"] == {"transformer": "lora"}
    assert record["conditioning"]["late"] == {"original": 1.0}
