"""Scorers: preprocessing against torch, layouts both ways, gradients against finite differences."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate
from transformers import CLIPModel

from tests.conftest import PROMPTS, WEIGHTS
from textcraftor.errors import UsageError
from textcraftor.rewards.aesthetic import Aesthetic, AestheticHead
from textcraftor.rewards.checkpoints import load_state
from textcraftor.rewards.clip import ClipScore
from textcraftor.rewards.hpsv2 import HPSv2
from textcraftor.rewards.mix import RewardMix
from textcraftor.rewards.open_clip import from_transformers, to_transformers
from textcraftor.rewards.preprocessing import clip_pixels, resize

LAION_HEADS = Path(__file__).parents[3] / "shared" / "data" / "weights"


def pictures(count: int = 3, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def scorers():
    return {
        "clip": ClipScore.load(str(WEIGHTS / "clip_constraint")),
        "hpsv2": HPSv2.load(str(WEIGHTS / "hpsv2.safetensors"), str(WEIGHTS / "pipeline/tokenizer")),
        "aesthetic": Aesthetic.load(str(WEIGHTS / "aesthetic_clip"), str(WEIGHTS / "aesthetic.safetensors")),
    }


@pytest.mark.parametrize(("source", "target"), [(64, 224), (512, 224), (100, 37)])
def test_resizing_equals_torchs_antialiased_bicubic(source, target):
    images = pictures(2, source)
    expected = interpolate(images, size=(target, target), mode="bicubic", antialias=True)
    torch.testing.assert_close(resize(images, target, target), expected, atol=5e-5, rtol=0)  # 1/80 of an 8-bit step


def test_clip_preprocessing_of_a_wide_picture_crops_its_middle():
    wide = pictures(1, 64).repeat(1, 1, 1, 2)
    expected = clip_pixels(wide[..., 32:96], 64)
    torch.testing.assert_close(clip_pixels(wide, 64), expected, atol=1e-5, rtol=0)


def test_open_clips_layout_survives_both_ways():
    clip = CLIPModel.from_pretrained(WEIGHTS / "clip_constraint")
    state = clip.state_dict()
    back = to_transformers(from_transformers(state, clip.config), clip.config)
    for key, value in back.items():
        assert torch.equal(value, state[key]), key
    assert {key for key in state if "position_ids" not in key} == set(back)


def test_a_missing_key_of_a_checkpoint_is_named():
    clip = CLIPModel.from_pretrained(WEIGHTS / "clip_constraint")
    state = from_transformers(clip.state_dict(), clip.config)
    del state["visual.proj"]
    with pytest.raises(UsageError, match=r"visual\.proj"):
        to_transformers(state, clip.config)


@pytest.mark.skipif(not LAION_HEADS.is_dir(), reason="needs LAION's heads in shared/data/weights")
def test_laions_published_head_loads_and_equals_its_composed_layers():
    """The head has no activations, so five affine maps in float64 must give the same score."""
    state = load_state(LAION_HEADS / "sac+logos+ava1-l14-linearMSE.pth", "head")
    head = AestheticHead(768)
    head.load_state_dict(state)
    embeds = torch.nn.functional.normalize(torch.randn(4, 768, generator=torch.Generator().manual_seed(0)), dim=-1)
    expected = embeds.double()
    for index in (0, 2, 4, 6, 7):
        expected = expected @ state[f"layers.{index}.weight"].double().T + state[f"layers.{index}.bias"].double()
    torch.testing.assert_close(head.eval()(embeds).double(), expected[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["clip", "hpsv2", "aesthetic"])
def test_pixel_gradients_equal_finite_differences(scorers, name):
    scorer = copy.deepcopy(scorers[name]).double()
    images = pictures(1).double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(scorer(images, PROMPTS[:1]).sum(), images)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction /= direction.norm()
    step = 1e-4
    with torch.no_grad():
        ahead, behind = (scorer(images + sign * step * direction, PROMPTS[:1]).sum() for sign in (1, -1))
    torch.testing.assert_close((gradient * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("name", ["clip", "hpsv2", "aesthetic"])
def test_scorers_are_frozen_and_do_not_depend_on_the_batch(scorers, name):
    scorer, images = scorers[name], pictures()
    assert not any(parameter.requires_grad for parameter in scorer.parameters())
    assert not scorer.training
    one_by_one = torch.cat([scorer(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(scorer(images, PROMPTS), one_by_one, atol=1e-5, rtol=0)


def test_clip_scores_are_cosines_of_transformers_own_features(scorers):
    """Against CLIPModel's own forward pass: logits divided by the temperature."""
    scorer, images = scorers["clip"], pictures()
    tokens = scorer.tokenizer(PROMPTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        output = scorer.clip(input_ids=tokens.input_ids, pixel_values=clip_pixels(images, 64))
        expected = (output.logits_per_image / scorer.clip.logit_scale.exp()).diagonal()
    torch.testing.assert_close(scorer(images, PROMPTS), expected, atol=1e-6, rtol=0)


def test_the_mix_is_the_weighted_sum_of_its_parts(scorers):
    mix = RewardMix(scorers, {"clip": 2.0, "hpsv2": -1.0, "aesthetic": 0.5})
    scores = mix(pictures(), PROMPTS)
    expected = 2 * scores["clip"] - scores["hpsv2"] + 0.5 * scores["aesthetic"]
    torch.testing.assert_close(mix.total(scores), expected)


def test_more_prompts_than_images_are_refused(scorers):
    with pytest.raises(UsageError, match="3 prompts for 2 images"):
        scorers["clip"](pictures(2), PROMPTS)


def test_a_width_that_does_not_fit_is_refused(tmp_path):
    torch.save(AestheticHead(768).state_dict(), tmp_path / "head.pth")
    with pytest.raises(UsageError, match=r"width 768.*128"):
        Aesthetic.load(str(WEIGHTS / "aesthetic_clip"), str(tmp_path / "head.pth"))
