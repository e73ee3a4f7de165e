"""Scorers: preprocessing against torch, layouts both ways, gradients against finite differences."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import interpolate
from transformers import CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from tests.conftest import PROMPTS, WEIGHTS
from textcraftor.errors import UsageError
from textcraftor.rewards.aesthetic import Aesthetic, LinearHead
from textcraftor.rewards.base import check_images
from textcraftor.rewards.checkpoints import load_state
from textcraftor.rewards.clip import ClipScore
from textcraftor.rewards.hpsv2 import HPSv2
from textcraftor.rewards.image_reward import ImageReward
from textcraftor.rewards.open_clip import from_transformers, to_transformers
from textcraftor.rewards.preprocessing import clip_pixels, normalize, padded_pixels, resize
from textcraftor.rewards.total import RewardSum, load_rewards

LAION_HEADS = Path(__file__).parents[3] / "shared" / "data" / "weights"


def pictures(count: int = 3, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


SCORERS = ("aesthetic", "clip", "hpsv2", "imagereward", "ocr", "pickscore")


@pytest.fixture
def scorers(configure):
    """Every scorer of the toybox, loaded as the command loads it."""
    overrides = [f"+reward@rewards.{name}={name}" for name in SCORERS if name != "ocr"]
    return dict(load_rewards(configure("train", "rewards=ocr", *overrides).rewards).scorers)


@pytest.mark.parametrize(("source", "target"), [(64, 224), (512, 224), (100, 37)])
def test_resizing_equals_torchs_antialiased_bicubic(source, target):
    images = pictures(2, source)
    expected = interpolate(images, size=(target, target), mode="bicubic", antialias=True)
    resized = resize(images, target, target, pillow=False)
    torch.testing.assert_close(resized, expected, atol=5e-5, rtol=0)  # 1/80 of an 8-bit step


@pytest.mark.parametrize("size", [(512, 512), (640, 384), (64, 64)])
def test_resizing_equals_pillows_and_differs_by_its_rounding_where_a_gradient_flows(size):
    """Pillow rounds to 8 bits and clips after each pass; the clipping matters at hard edges, as in these stripes."""
    width, height = size
    stripes = ((np.add.outer(np.arange(height), 2 * np.arange(width)) // 16) % 2 * 255).astype(np.uint8)
    picture = np.stack([stripes, 255 - stripes, stripes // 2], -1)
    expected = np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32)
    images = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    assert np.abs(resize(images, 224, 224)[0].permute(1, 2, 0).numpy() * 255 - expected).max() < 1e-3
    smooth = resize(images.requires_grad_(), 224, 224).detach()
    assert np.abs(smooth[0].permute(1, 2, 0).numpy() * 255 - expected).max() < 2


def test_clip_preprocessing_of_a_wide_picture_crops_its_middle():
    wide = pictures(1, 64).repeat(1, 1, 1, 2)
    expected = clip_pixels(wide[..., 32:96], 64)
    torch.testing.assert_close(clip_pixels(wide, 64), expected, atol=1e-5, rtol=0)


def test_hpsv2_pads_a_wide_picture_with_black_instead_of_cropping_it():
    wide = pictures(1, 64).repeat(1, 1, 1, 2)
    pixels = padded_pixels(wide, 32)
    black = normalize(torch.zeros(1, 3, 32, 32), OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    assert torch.equal(pixels[..., :8, :], black[..., :8, :])
    assert torch.equal(pixels[..., 24:, :], black[..., 24:, :])
    expected = interpolate(wide, size=(16, 32), mode="bicubic", antialias=True)
    expected = normalize(expected, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    torch.testing.assert_close(pixels[..., 8:24, :], expected, atol=1e-4, rtol=0)


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
    state = load_state(str(LAION_HEADS / "sac+logos+ava1-l14-linearMSE.pth"), "head")
    head = LinearHead.of(state, "head", "LAION's")
    embeds = torch.nn.functional.normalize(torch.randn(4, 768, generator=torch.Generator().manual_seed(0)), dim=-1)
    expected = embeds.double()
    for index in (0, 2, 4, 6, 7):
        expected = expected @ state[f"layers.{index}.weight"].double().T + state[f"layers.{index}.bias"].double()
    torch.testing.assert_close(head.eval()(embeds).double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SCORERS)
def test_pixel_gradients_equal_finite_differences(scorers, name):
    scorer = copy.deepcopy(scorers[name]).double()
    images = (0.1 + 0.8 * pictures(1, 80)).double().requires_grad_(True)
    prompts = [PROMPTS[1]]
    (gradient,) = torch.autograd.grad(scorer(images, prompts).sum(), images)
    assert gradient.abs().max() > 0
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction /= direction.norm()
    step = 1e-4
    moved = [(images + sign * step * direction).detach().requires_grad_() for sign in (1, -1)]
    ahead, behind = (scorer(each, prompts).sum().detach() for each in moved)
    torch.testing.assert_close((gradient * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_are_frozen_and_do_not_depend_on_the_batch(scorers, name):
    scorer, images = scorers[name], pictures()
    assert not any(parameter.requires_grad for parameter in scorer.parameters())
    assert not scorer.training
    one_by_one = torch.cat([scorer(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(scorer(images, PROMPTS), one_by_one, atol=1e-5, rtol=0)


def test_clip_scores_are_cosines_of_transformers_own_features(scorers):
    """Against CLIPModel's own forward pass: logits divided by the temperature."""
    scorer, images = scorers["clip"], pictures()
    tokens = scorer.tokenize.tokenizer(PROMPTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        output = scorer.clip(input_ids=tokens.input_ids, pixel_values=clip_pixels(images, 64))
        expected = (output.logits_per_image / scorer.clip.logit_scale.exp()).diagonal()
    torch.testing.assert_close(scorer(images, PROMPTS), expected, atol=1e-6, rtol=0)


def test_the_mix_is_the_weighted_sum_of_its_parts(scorers):
    weights = {"clip": 2.0, "hpsv2": -1.0, "aesthetic": 0.5}
    rewards = RewardSum({name: scorers[name] for name in weights}, weights)
    scores = rewards(pictures(), PROMPTS)
    expected = 2 * scores["clip"] - scores["hpsv2"] + 0.5 * scores["aesthetic"]
    torch.testing.assert_close(rewards.total(scores), expected)


def test_a_scorer_of_weight_0_is_measured_and_passes_no_gradient(scorers):
    rewards = RewardSum({name: scorers[name] for name in ("clip", "hpsv2")}, {"clip": 0.0, "hpsv2": 1.0})
    images = pictures().requires_grad_(True)
    scores = rewards(images, PROMPTS)
    assert scores["hpsv2"].requires_grad
    assert not scores["clip"].requires_grad


def test_normalised_mixes_do_not_depend_on_a_scorers_scale():
    """Two mixes whose second scorer differs in scale and offset alone give one objective and one gradient."""

    def red(images, prompts):
        return images[:, 0].mean((1, 2))

    def green(images, prompts):
        return images[:, 1].std((1, 2))

    objectives, gradients = [], []
    for scale in (1.0, 1000.0):
        scaled = partial(lambda images, prompts, scale: scale * green(images, prompts) + 7, scale=scale)
        rewards = RewardSum({"red": red, "green": scaled}, {"red": 1.0, "green": 1.0}, normalize=True)
        rewards.start(rewards(pictures(8), PROMPTS[:1] * 8))
        for seed in range(3):
            images = pictures(4, seed=seed).requires_grad_(True)
            scores = rewards(images, PROMPTS[:1] * 4)
            rewards.observe(rewards.moments(scores))
            objective = rewards.objective(scores)
        gradients += torch.autograd.grad(objective.sum(), images)
        objectives.append(objective.detach())
    torch.testing.assert_close(*objectives, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_the_normalised_total_keeps_its_first_statistics():
    rewards = RewardSum({"red": lambda images, prompts: images[:, 0].mean((1, 2))}, {"red": 2.0}, normalize=True)
    first = rewards(pictures(8), PROMPTS[:1] * 8)
    rewards.start(first)
    expected = 2 * (first["red"] - first["red"].mean()) / first["red"].std()
    rewards.observe(rewards.moments(rewards(pictures(8, seed=1) / 2, PROMPTS[:1] * 8)))
    torch.testing.assert_close(rewards.total(first), expected)


def test_bfloat16_scorers_stay_close_to_float32(scorers):
    images = pictures()
    for name, scorer in scorers.items():
        exact = scorer(images, PROMPTS)
        rough = copy.deepcopy(scorer).bfloat16()(images, PROMPTS)
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough, exact, atol=0.05 * (1 + float(exact.abs().max())), rtol=0, msg=name)


@pytest.mark.parametrize(
    ("images", "prompts", "line"),
    [
        (pictures(2), PROMPTS, "3 prompts for 2 images"),
        (pictures(2), "a red circle", "1 prompts for 2 images"),
        (pictures(1) * 255, PROMPTS[:1], r"images in \[0\..*expected \[0, 1\]"),
        (pictures(1) * 2 - 1, PROMPTS[:1], r"rescale pictures in \[-1, 1\]"),
        (torch.full((1, 3, 8, 8), torch.nan), PROMPTS[:1], "images hold NaN"),
        ((pictures(1) * 255).byte(), PROMPTS[:1], "divide 8-bit pictures by 255"),
        (pictures(1)[0], PROMPTS[:1], r"images of shape \(3, 64, 64\)"),
        (pictures(1), ["  "], "prompt 0 is empty"),
        (pictures(1), [None], "prompt 0 is None, a NoneType"),
    ],
)
def test_bad_input_is_refused(images, prompts, line):
    scorer = ClipScore.load(str(WEIGHTS / "clip_constraint"))
    with pytest.raises(UsageError, match=line):
        scorer(images, prompts)


def test_the_range_of_pictures_that_a_chain_made_is_not_read():
    """It would halt the device at every step; the training loop names a NaN itself."""
    made = (pictures(1).requires_grad_(True) * 300).clamp(0, 300)
    check_images(made)
    with pytest.raises(UsageError, match="expected"):
        check_images(made.detach())


def test_a_prompt_that_is_too_long_is_cut_with_one_warning(scorers):
    long = " and ".join(["a red circle"] * 30)
    for name in ("clip", "imagereward"):
        with pytest.warns(UserWarning, match="a red circle and .*the rest is ignored"):
            scorers[name](pictures(1), [long])
        scorers[name](pictures(1), [long + " and a blue star"])  # a second warning would be an error


def spoilt(tmp_path: Path, how: str) -> Path:
    """A copy of the packed HPSv2 checkpoint with something wrong."""
    file = tmp_path / "hpsv2.safetensors"
    state = load_state(str(WEIGHTS / "hpsv2.safetensors"), "checkpoint")
    if how == "key":
        del state["ln_final.weight"]
    if how == "shape":
        state["visual.proj"] = state["visual.proj"][:, :8].clone()
    if how == "pickle":
        file = tmp_path / "hpsv2.pt"
        torch.save({"state_dict": state, "path": Path("x")}, file)
        return file
    save_file(state, file)
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:100_000])
    return file


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("key", "key 'ln_final.weight' is missing; expected an open_clip CLIP state dict"),
        ("shape", r"has shape .* expected"),
        ("truncated", "is damaged or no checkpoint"),
        ("pickle", "holds more than tensors.*safetensors"),
    ],
)
def test_a_wrong_checkpoint_is_refused_with_what_is_wrong(tmp_path, how, line):
    with pytest.raises(UsageError, match=line):
        HPSv2.load(str(spoilt(tmp_path, how)), str(WEIGHTS / "pipeline/tokenizer"), str(WEIGHTS / "hpsv2.json"))


def test_a_checkpoint_of_another_scorer_is_refused(tmp_path):
    folder = WEIGHTS / "imagereward"
    with pytest.raises(UsageError, match=r"blip\.visual_encoder.* is missing; expected ImageReward's layout"):
        ImageReward.load(str(WEIGHTS / "hpsv2.safetensors"), str(folder / "med_config.json"), str(folder))
    with pytest.raises(UsageError, match=r"layers\.0\.weight.* is missing; expected the layout of LAION's"):
        Aesthetic.load(str(WEIGHTS / "aesthetic_clip"), str(WEIGHTS / "hpsv2.safetensors"))


def test_laions_linear_head_is_read_too(tmp_path):
    """v1's file holds one linear layer; it must score as that layer on the same embedding."""
    state = {"weight": torch.randn(1, 256), "bias": torch.randn(1)}
    torch.save(state, tmp_path / "v1.pth")
    scorer, images = Aesthetic.load(str(WEIGHTS / "aesthetic_clip"), str(tmp_path / "v1.pth")), pictures()
    expected = scorer.embed_pixels(scorer.pixels(images)) @ state["weight"][0] + state["bias"]
    torch.testing.assert_close(scorer(images, PROMPTS), expected)


def test_image_rewards_layout_survives_both_ways(scorers, tmp_path):
    published = load_state(str(WEIGHTS / "imagereward" / "ImageReward.safetensors"), "checkpoint")
    again = scorers["imagereward"].published_state()
    assert set(again) == set(published)
    assert all(torch.equal(again[key], published[key].float()) for key in again)


def test_an_open_clip_checkpoint_serves_as_constraint(scorers):
    """The HPSv2 layout, read as a plain CLIP, scores square pictures that need no resize as HPSv2 does."""
    files = str(WEIGHTS / "hpsv2.safetensors"), str(WEIGHTS / "pipeline/tokenizer"), str(WEIGHTS / "hpsv2.json")
    constraint = ClipScore.load(*files)
    torch.testing.assert_close(constraint(pictures(), PROMPTS), scorers["hpsv2"](pictures(), PROMPTS))


def test_a_width_that_does_not_fit_is_refused(tmp_path):
    torch.save(LinearHead(768).state_dict(), tmp_path / "head.pth")
    with pytest.raises(UsageError, match=r"width 768.*256"):
        Aesthetic.load(str(WEIGHTS / "aesthetic_clip"), str(tmp_path / "head.pth"))
