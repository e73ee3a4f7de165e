"""An ensemble's score against hand-computed ones, its gradient against finite differences, what it refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from tests.conftest import WEIGHTS
from textcraftor.errors import UsageError
from textcraftor.evaluation.evaluate import Evaluation
from textcraftor.rewards.base import Reward
from textcraftor.rewards.ensemble import Ensemble
from textcraftor.rewards.skeletons import skeleton_rewards
from textcraftor.rewards.total import RewardSum, check_rewards, judged_by_readers
from textcraftor.training.standardising import standardise

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a circle", 'a star with the word "A"', "a cross", 'the word "B"']


class Channel(Reward):
    """A channel's mean square; on request of prompts with quotes alone."""

    def __init__(self, index: int, quotes: bool = False) -> None:
        super().__init__()
        self.index, self.quotes = index, quotes

    def applies(self, prompts):
        return ['"' in prompt or not self.quotes for prompt in prompts]

    def score(self, images, prompts):
        scores = images[:, self.index].square().mean((1, 2))
        return scores * torch.tensor(self.applies(prompts), dtype=scores.dtype)


def ensemble(combine: str, k: float = 1.0) -> Ensemble:
    """Of three members, the last of which judges prompts with quotes alone; standardised by means 1, 2, 3 and spreads
    1, 2, 4."""
    members = {"a": Channel(0), "b": Channel(1), "c": Channel(2, quotes=True), "left_out": None}
    made = Ensemble(members, combine, k)
    made.start({name: torch.tensor([-1.0, 1.0]) * 2**i / 2**0.5 + i + 1 for i, name in enumerate("abc")})
    torch.testing.assert_close(made.mean, torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(made.spread, torch.tensor([1.0, 2.0, 4.0]))
    return made


@pytest.mark.parametrize(
    ("combine", "k", "expected"),
    [
        ("mean", 1.0, [3.0, 2.0, 0.0]),
        ("min", 1.0, [2.0, -1.0, 0.0]),
        ("lower", 1.0, [3.0 - 1.0, 2.0 - 14**0.5 / 3**0.5, 0.0]),
        ("lower", 0.5, [3.0 - 0.5, 2.0 - 0.5 * 14**0.5 / 3**0.5, 0.0]),
        ("lower", 0.0, [3.0, 2.0, 0.0]),
    ],
)
def test_members_that_apply_are_standardised_and_combined(combine, k, expected):
    """By hand: z = (4, 2, not counted), whose sd is 1; z = (4, -1, 3), whose squared distances from 2 are 4, 9 and 1;
    and a prompt that no member applies to."""
    scores = torch.tensor([[5.0, 5.0, 9.0], [6.0, 0.0, 9.0], [0.0, 15.0, 9.0]])
    counted = torch.tensor([[True, True, False], [True, True, False], [False, True, False]])
    torch.testing.assert_close(ensemble(combine, k).combined(scores, counted), torch.tensor(expected))


@pytest.mark.parametrize("combine", ["mean", "min", "lower"])
def test_the_gradient_passes_through_every_member_that_counts(combine):
    """It equals finite differences; where a single member applies, whose disagreement is 0, it is that member's."""
    made = ensemble(combine, k=0.7)
    for row in range(2):
        image = torch.nn.functional.interpolate(IMAGES[row : row + 1], 16)
        check = copy.deepcopy(made).double()
        inside = image.double().requires_grad_(True)
        (gradient,) = torch.autograd.grad(check(inside, PROMPTS[row : row + 1]).sum(), inside)
        reached = gradient.abs().amax((0, 2, 3)) > 0
        assert reached.sum() == (1 if combine == "min" else 2 + row)
        step = 1e-5 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        ahead, behind = (check((inside + sign * step).detach(), PROMPTS[row : row + 1]).sum() for sign in (1, -1))
        torch.testing.assert_close((gradient * step).sum() * 2, (ahead - behind).detach(), rtol=1e-5, atol=1e-12)
    alone = Ensemble({"a": Channel(0, quotes=True), "b": Channel(1)}, combine)
    image = IMAGES[:1].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(alone(image, PROMPTS[:1]).sum(), image)
    torch.testing.assert_close(gradient[:, 1], 2 * IMAGES[:1, 1] / 64)
    assert not gradient[:, [0, 2]].any()


def test_figures_of_the_untuned_model_make_the_statistics_and_their_own_scores():
    """As a run does it: pictures are measured, then standardised; the figures then equal what the ensemble scores."""
    members = {"a": Channel(0), "b": Channel(1, quotes=True)}
    rewards = RewardSum({"raters": Ensemble(members, "lower", 1.0), "red": Channel(0)}, {"raters": 2.0, "red": 1.0})

    def measured() -> Evaluation:
        scores = rewards(IMAGES, PROMPTS)
        figures = {**scores, **rewards.measure(IMAGES, PROMPTS), "total": rewards.total(scores)}
        images = torch.zeros(4, 1, 3, 8, 8, dtype=torch.uint8)
        return Evaluation(tuple(PROMPTS), (0,), images, {name: one.numpy()[:, None] for name, one in figures.items()})

    before = {"evaluated": measured(), "watched": measured()}
    standardise(rewards, before, normalize=False)
    reds, greens = IMAGES[:, 0].square().mean((1, 2)), IMAGES[[1, 3], 1].square().mean((1, 2))
    torch.testing.assert_close(rewards.ensembles["raters"].mean, torch.stack([reds.mean(), greens.mean()]))
    torch.testing.assert_close(rewards.ensembles["raters"].spread, torch.stack([reds.std(), greens.std()]))
    again = measured()
    for one in before.values():
        for name, values in again.measures.items():
            np.testing.assert_allclose(one.measures[name], values, atol=1e-6, err_msg=name)
    assert rewards.applies(PROMPTS)["raters"].all()
    np.testing.assert_array_equal(np.isnan(again.measures["raters/b"][:, 0]), [True, False, True, False])


def test_a_member_that_tells_no_pictures_apart_is_refused_by_name():
    rewards = RewardSum({"raters": Ensemble({"a": Channel(0), "b": Channel(1)})}, {"raters": 1.0})
    figures = {
        "raters/a": [[0.1], [0.2]],
        "raters/b": [[0.3], [0.3]],
        "raters": [[0.0], [0.0]],
        "total": [[0.0], [0.0]],
    }
    images = torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)
    before = Evaluation(("x", "y"), (0,), images, {name: np.array(one) for name, one in figures.items()})
    with pytest.raises(UsageError, match=r"rewards.raters: its member b does not tell the 2 evaluated pictures apart"):
        standardise(rewards, {"evaluated": before}, normalize=False)


RATERS = "rewards.raters.reward"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([f"{RATERS}.combine=max"], f"{RATERS}.combine=max must be one of mean, min, lower"),
        ([f"{RATERS}.k=-1"], f"{RATERS}.k=-1 must be a number, at least 0"),
        ([f"{RATERS}.k=null"], f"{RATERS}.k=null must be of the type float"),
        (
            [f"{RATERS}.members.hpsv2=null", f"{RATERS}.members.pickscore=null"],
            f"{RATERS}.members={{imagereward}} must name at least two scorers",
        ),
        ([f"{RATERS}.members=null"], f"{RATERS}.members={{}} must name at least two scorers"),
        ([f"{RATERS}.members.hpsv2=5"], f"{RATERS}.members.hpsv2=5 must be a group of keys"),
        ([f"{RATERS}.members.hpsv2.checkpoint=[1]"], f"{RATERS}.members.hpsv2.checkpoint=[1] must be a path"),
        (
            [f"{RATERS}.members.hpsv2.checkpoint=/no/ a.pt"],
            f"{RATERS}.members.hpsv2.checkpoint=/no/ a.pt does not exist",
        ),
        ([f"+{RATERS}.members.mine.path=x"], f"{RATERS}.members.mine._target_ is needed"),
        ([f"+{RATERS}.members.hpsv2.foo=1"], "HPSv2.load takes no foo"),
        ([f"+{RATERS}.foo=1"], "textcraftor.rewards.ensemble.Ensemble takes no foo"),
    ],
)
def test_wrong_ensembles_are_refused_before_anything_is_loaded(configure, overrides, line):
    with pytest.raises(UsageError) as refused:
        check_rewards(configure("train", "rewards=ensemble", *overrides), training=True)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_ensemble_within_an_ensemble_is_refused():
    with pytest.raises(UsageError, match=r"members.inner is an ensemble: name its members here instead"):
        Ensemble({"inner": ensemble("mean"), "a": Channel(0)})


@pytest.mark.parametrize("command", ["evaluate", "score"])
def test_commands_without_pictures_of_the_untuned_model_refuse_ensembles(configure, command):
    with pytest.raises(
        UsageError, match=r"rewards.raters is an ensemble, which is standardised by the untuned model's"
    ):
        check_rewards(configure(command, "rewards=ensemble"))


def test_a_reader_within_an_ensemble_is_seen_and_sizes_of_members_are_known(configure):
    """Prompts with words are watched for it, its files are checked, and memory is planned for every member."""
    plain, reading = (
        configure("train", "rewards=ensemble", *added)
        for added in (
            [],
            [f"+{RATERS}.members.ocr={{_target_: textcraftor.rewards.ocr.OcrLegibility.load, recogniser: x}}"],
        )
    )
    assert judged_by_readers(plain.rewards) is None
    assert judged_by_readers(reading.rewards)('the word "KKQ"') == ["KKQ"]
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "pipeline" / "tokenizer")
    rewards, unknown = skeleton_rewards(reading.rewards, torch.float32, tokenizer)
    assert unknown == ["raters/imagereward", "raters/ocr"]
    weights = {
        name: sum(one.numel() for one in member.parameters())
        for name, member in rewards.scorers["raters"].members.items()
    }
    assert weights["hpsv2"] == weights["pickscore"] > 9e8
