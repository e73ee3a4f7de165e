"""Regions: masks, the blended output against its formula, gradients against finite differences, and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from random_models import make_pipeline

from tests.conftest import PROMPTS
from tests.sampling.test_surrogates import assert_finite_differences, gradient, reward
from textcraftor.config.overrides import as_typed
from textcraftor.errors import UsageError
from textcraftor.inference import run as generating
from textcraftor.inference.generate import Sampling
from textcraftor.models.model import Model
from textcraftor.sampling.chain import guided
from textcraftor.sampling.gradients import full
from textcraftor.sampling.regions import Region
from textcraftor.sampling.surrogates import deferred_output

LEFT, BOTTOM = Region((0.0, 0.0, 0.5, 1.0), PROMPTS[2], 2.0), Region((0.1, 0.5, 1.0, 1.0), PROMPTS[1])
REGIONS = [[LEFT, BOTTOM], []]  # of two samples
KINDS = {"sd15": "ddim", "sd35_medium": "euler"}


@pytest.fixture(params=KINDS)
def case(request, in_float64):
    """A small model of diffusion or of flow in float64, with an encoder that learns, and its sampling."""
    model = in_float64(Model(make_pipeline(request.param, tiny=True)))
    return model, Sampling(3, 2.0, 32, 32, scheduler=KINDS[request.param])


def conditioning_of(model: Model, sampling: Sampling, prompts=PROMPTS[:2], regions=REGIONS):
    return sampling.encode(model, prompts, ["tuned"], regions)["tuned"]


def test_a_mask_is_one_inside_zero_outside_and_soft_at_edges_within_the_picture():
    mask = Region((0.25, 0.0, 0.5, 1.0), "a").mask(4, 64)
    assert torch.equal(Region((0.0, 0.0, 1.0, 1.0), "a").mask(5, 7), torch.ones(5, 7))
    assert (mask[:, 20:28] == 1).all(), "the upper and lower sides of the picture are no edges"
    assert (mask[:, :12] < 1e-9).all()
    assert ((mask[0, 15:17] > 0.1) & (mask[0, 15:17] < 0.9)).all()
    torch.testing.assert_close(mask.mean(), torch.tensor(0.25))
    small = Region((0.5, 0.5, 0.56, 0.56), "a").mask(4, 4)
    torch.testing.assert_close(small.sum() / 16, torch.tensor(0.06**2), rtol=0.05, atol=0)


def test_the_output_is_the_weighted_mean_of_every_prompts_own(case):
    model, sampling = case
    chain, conditioning = sampling.chain(model, [1, 2]), conditioning_of(model, sampling)
    latents, t = chain.start().double(), chain.timesteps[1]
    with torch.no_grad():
        whole, *parts = (
            guided(chain, latents, t, conditioning_of(model, sampling, prompts, ()))
            for prompts in (PROMPTS[:2], [LEFT.prompt] * 2, [BOTTOM.prompt] * 2)
        )
        output = guided(chain, latents, t, conditioning)
    weights = [region.strength * region.mask(*latents.shape[2:]).double() for region in REGIONS[0]]
    mean = (whole[0] + sum(w * part[0] for w, part in zip(weights, parts, strict=True))) / (1 + sum(weights))
    torch.testing.assert_close(output, torch.stack([mean, whole[1]]), rtol=0, atol=1e-9)
    assert (mean - whole[0]).abs().max() > 1e-3, "the regions change nothing: the test proves nothing"


def test_each_sample_keeps_its_own_regions_in_any_batch(case):
    model, sampling = case
    both = conditioning_of(model, sampling, PROMPTS[:2], [[BOTTOM], [LEFT]])
    latents, t = sampling.chain(model, [1, 2]).start().double(), sampling.chain(model, [1]).timesteps[1]
    with torch.no_grad():
        together = guided(sampling.chain(model, [1, 2]), latents, t, both)
        alone = guided(sampling.chain(model, [2]), latents[1:], t, both.row(1))
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-9)
    assert both.row(0).regional is not None
    assert conditioning_of(model, sampling).row(1).regional is None


def test_gradients_flow_through_regional_prompts(case):
    """With the tuned encoder in the regions alone, against finite differences."""
    model, sampling = case

    def value() -> torch.Tensor:
        chain = sampling.chain(model, [1, 2])
        plain = sampling.encode(model, PROMPTS[:2], ["original"])["original"]
        conditioning = replace(plain, regional=conditioning_of(model, sampling).regional)
        return reward(full(chain, chain.start().double(), lambda t: conditioning)).sum()

    analytic = gradient(model, value())
    assert analytic.abs().max() > 1e-6
    assert_finite_differences(model, analytic, value)


def test_an_output_that_is_computed_in_the_backward_pass_has_the_same_gradient(case):
    model, sampling = case
    chain = sampling.chain(model, [1, 2])
    latents, t = chain.start().double(), chain.timesteps[1]
    gradients = [
        gradient(model, (latents * output(chain, latents, t, conditioning_of(model, sampling))).sum())
        for output in (guided, deferred_output)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    without = gradient(model, (latents * guided(chain, latents, t, conditioning_of(model, sampling, regions=()))).sum())
    assert (gradients[0] - without).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ("3", "regions=3 must be a list, as regions="),
        ("[3]", "a region must be {box: "),
        ("[{box: [0,0,1,1]}]", "a region must be {box: "),
        ("[{box: 7, prompt: a}]", "box=7 must be four numbers in [0, 1]"),
        ("[{box: [0,0,1], prompt: a}]", "box=[0, 0, 1] must be four numbers in [0, 1]"),
        ("[{box: [0,0,1,1.5], prompt: a}]", "box=[0, 0, 1, 1.5] must be four numbers in [0, 1]"),
        ("[{box: [0,0,1,nan], prompt: a}]", "must be four numbers in [0, 1]"),
        ("[{box: [.5,0,.5,1], prompt: a}]", "is empty: left must be less than right"),
        ("[{box: [0,0,1,1], prompt: ' '}]", "the prompt of box=[0, 0, 1, 1] is empty"),
        ("[{box: [0,0,1,1], prompt: a, strength: -1}]", "strength=-1 of box=[0, 0, 1, 1] must be finite"),
        ("[{box: [0,0,1,1], prompt: a, strength: inf}]", "strength=inf of box=[0, 0, 1, 1] must be finite"),
        ("[{box: [0,0,1,1], prompt: 'an elephant'}]", "tokenizer does not know elephant"),
    ],
)
def test_what_is_no_region_is_refused_in_one_line(configure, tmp_path, regions, message):
    with pytest.raises(UsageError) as refusal:
        generating.run(configure("generate", "prompt=a red circle", f"regions={regions}"), tmp_path / "pictures")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "pictures" / "metadata.jsonl").exists()


def test_prompts_of_regions_are_taken_as_typed(configure):
    (override,) = as_typed("generate", [r"""regions=[{box: [0, 0, .5, 1], prompt: 'the "${word}" {it\'s}, [2]'}]"""])
    config = configure("generate", override)
    assert generating.regions_of(config) == [Region((0.0, 0.0, 0.5, 1.0), """the "${word}" {it's}, [2]""")]


def test_the_command_makes_the_pictures_of_its_regions_and_says_so_in_them(configure, tmp_path):
    wanted = "regions=[{box: [0, 0, .5, 1], prompt: 'a pink cross', strength: 3}]"
    options = ["prompt=a red circle", "seeds=[1]", "sampling.steps=3", "device=cpu"]
    for name, regions in (("with", wanted), ("without", "regions=[]"), ("none", "regions=[]")):
        generating.run(configure("generate", *options, regions), tmp_path / name)
    pictures = {name: Image.open(tmp_path / name / "0000_1.png") for name in ("with", "without", "none")}
    assert json.loads(pictures["with"].text["settings"])["regions"] == [
        {"box": [0, 0, 0.5, 1], "prompt": "a pink cross", "strength": 3}
    ]
    assert pictures["without"].tobytes() == pictures["none"].tobytes() != pictures["with"].tobytes()
