"""Surrogate gradients, on diffusion and on flow: against finite differences in float64 of the function that each is the
gradient of, written out here without any of the policies' shortcuts."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from random_models import make_pipeline

from tests.conftest import PROMPTS
from textcraftor.errors import UsageError
from textcraftor.inference.generate import Sampling
from textcraftor.models.model import Model
from textcraftor.sampling.chain import guided
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.sampling.surrogates import DISTANCE, Trajectory, bridge, drtune, leap, sparse
from textcraftor.training.counting import cost_of

STEPS, GUIDANCE = 4, 2.0
# diffusers' other samplers round to float32: they are compared with a whole graph instead, see below.
EXACT = [("sd15", "ddim"), ("sd35_medium", "euler")]
ROUNDED = [("sd15", "euler"), ("sd15", "dpmsolver++"), ("sd15", "pndm")]


@pytest.fixture(params=EXACT, ids=str)
def case(request, in_float64):
    """A small model in float64 with an encoder that learns, and its sampling."""
    name, scheduler = request.param
    model = in_float64(Model(make_pipeline(name, tiny=True)))
    return model, Sampling(STEPS, GUIDANCE, 32, 32, scheduler=scheduler)


def parameters(model: Model) -> list[torch.nn.Parameter]:
    return list(model.encoders("tuned")["text_encoder"].parameters())


def begin(model: Model, sampling: Sampling):
    """A chain, its first latents, and the tuned encoder's conditioning with a gradient."""
    chain = sampling.chain(model, [1, 2], rng=np.random.default_rng(3))
    encoded = sampling.encode(model, PROMPTS[:2], ["tuned"])
    schedule = ConditioningSchedule.tuned_on("all", 0, chain.timesteps)
    return chain, chain.start().double(), partial(schedule.at, encoded)


def reward(latents: torch.Tensor) -> torch.Tensor:
    """Smooth, another number for each sample."""
    return (latents + 0.3 * latents**2).mean((1, 2, 3))


def gradient(model: Model, value: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(value, parameters(model), allow_unused=True)
    pairs = zip(parameters(model), found, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])


@torch.no_grad()
def assert_finite_differences(model: Model, analytic: torch.Tensor, value) -> None:
    flat = torch.nn.utils.parameters_to_vector(parameters(model)).clone()
    direction = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction /= direction.norm()
    values = []
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(flat + sign * 1e-5 * direction, parameters(model))
        values.append(value())
    torch.nn.utils.vector_to_parameters(flat, parameters(model))
    difference = (values[0] - values[1]) / 2e-5
    assert difference.abs() > 1e-9, "nothing changes: the test proves nothing"
    torch.testing.assert_close(analytic @ direction, difference, rtol=1e-5, atol=1e-11)


class Recording:
    """The chain as it went with the first parameters: what a surrogate holds constant."""

    def __init__(self, model: Model, sampling: Sampling) -> None:
        self.model, self.sampling = model, sampling
        with torch.no_grad():
            chain, latents, at = begin(model, sampling)
            self.rolled = Trajectory.of(chain, latents, at)
            self.outputs = [guided(chain, seen, t, at(t)) for seen, t in self.steps()]

    def steps(self):
        return zip(self.rolled.inputs, self.rolled.sampler.timesteps, strict=True)

    def replayed(self, active, scale: float, split: int | None = None, discount: float = 0.0) -> torch.Tensor:
        """The sampler's own sum with the outputs of some steps computed again, the others as they were.

        Args:
            split: from this step on the denoiser sees a share of what the earlier ones changed.
        """
        chain, latents, at = begin(self.model, self.sampling)
        sampler, shifted = copy.deepcopy(self.rolled.sampler), torch.zeros_like(latents)
        for step, (seen, t) in enumerate(self.steps()):
            sampler.scaled(latents, t)
            output = self.outputs[step]
            if step in active:
                moved = (
                    seen + discount * chain.sampler.scaled(shifted, t) if split is not None and step >= split else seen
                )
                output = guided(chain, moved, t, at(t))
            latents = sampler.step(output, t, latents)
            if split is not None:  # what the early steps alone change, carried on
                shifted = self.early_change(active, split, step, at, chain)
        return self.rolled.final + scale * (latents - self.rolled.final)

    def early_change(self, active, split: int, upto: int, at, chain) -> torch.Tensor:
        """How the latents after step `upto` differ where only active steps before the split are computed again."""
        ends = []
        for again in (True, False):
            _, latents, _ = begin(self.model, self.sampling)
            sampler = copy.deepcopy(self.rolled.sampler)
            for step, (seen, t) in enumerate(self.steps()):
                sampler.scaled(latents, t)
                output = (
                    guided(chain, seen, t, at(t)) if again and step in active and step < split else self.outputs[step]
                )
                latents = sampler.step(output, t, latents)
                if step == upto:
                    break
            ends.append(latents)
        return ends[0] - ends[1]


def chosen(k: int) -> list[int]:
    chances = np.arange(STEPS) + 1.0
    return sorted(np.random.default_rng(3).choice(STEPS, k, replace=False, p=chances / chances.sum()).tolist())


@pytest.mark.parametrize("policy", ["sparse", "drtune", "bridge"])
def test_sums_over_steps(case, policy):
    model, sampling = case
    chain, latents, at = begin(model, sampling)
    rollout, scale, active, options = {
        "sparse": (partial(sparse, k=2), 0.5, chosen(2), {}),
        "drtune": (partial(drtune, k=2), 1.0, [int((i + np.random.default_rng(3).uniform()) * 2) for i in (0, 1)], {}),
        "bridge": (partial(bridge, k=3, discount=0.4), 0.5, chosen(3), {"split": chosen(3)[1], "discount": 0.4}),
    }[policy]
    result = rollout(chain, latents, at)
    record = Recording(model, sampling)
    torch.testing.assert_close(result, record.rolled.final, rtol=0, atol=0)
    analytic = gradient(model, reward(result).sum())
    assert_finite_differences(model, analytic, lambda: reward(record.replayed(active, scale, **options)).sum())


@pytest.mark.parametrize("discount", [0.0, 0.3, 1.0])
def test_two_leaps(case, discount):
    """The reward sees the real picture; a sample whose leaps miss counts less."""
    model, sampling = case
    chain, latents, at = begin(model, sampling)
    result = leap(chain, latents, at, discount=discount)
    record = Recording(model, sampling)
    torch.testing.assert_close(result, record.rolled.final, rtol=0, atol=1e-12)
    first, second = sorted(np.random.default_rng(3).choice(STEPS, 2, replace=False).tolist())
    steps, schedule = list(record.steps()), model.noise_schedule
    (start, t), (middle, later) = steps[first], steps[second]

    def leaps(fixed=None):
        """x_j and x_0 by leaps, with the connectors' offsets and the discount's constant part as they were."""
        chain, _, at = begin(model, sampling)
        guess = schedule.jump(guided(chain, start, t, at(t)), t, start, later)
        offset, constant = (middle - guess, middle) if fixed is None else fixed[:2]
        between = guess + offset
        output = guided(chain, discount * between + (1 - discount) * constant, later, at(later))
        picture = schedule.to_x0(output, later, between)
        end = record.rolled.final - picture if fixed is None else fixed[2]
        return guess, picture + end, (offset, constant, end)

    with torch.no_grad():
        guess, picture, fixed = leaps()
        bare = picture - fixed[2]
    misses = [(guess - middle).abs().mean((1, 2, 3)), (bare - record.rolled.final).abs().mean((1, 2, 3))]
    torch.testing.assert_close(chain.weight, 1 / sum(miss.clamp_min(DISTANCE) for miss in misses))
    analytic = gradient(model, (chain.weight * reward(result)).sum())
    assert_finite_differences(model, analytic, lambda: (chain.weight * reward(leaps(fixed)[1])).sum())


@pytest.mark.parametrize("case", EXACT + ROUNDED, indirect=True, ids=str)
def test_the_denoisers_own_weights_get_their_gradient(case):
    """As if its outputs had been computed with a graph: every sampler is linear, multistep ones too."""
    model, sampling = case
    weights = [weight.requires_grad_(True) for weight in list(model.denoiser.parameters())[:4]]
    chain, latents, at = begin(model, sampling)
    ours = torch.autograd.grad(
        reward(drtune(chain, latents, at, k=len(chain.timesteps))).sum(), weights, allow_unused=True
    )
    chain, latents, at = begin(model, sampling)
    for t in chain.timesteps:
        output = guided(chain, chain.sampler.scaled(latents, t).detach(), t, at(t))
        latents = chain.sampler.step(output, t, latents)
    theirs = torch.autograd.grad(reward(latents).sum(), weights, allow_unused=True)
    assert any(one is not None for one in ours)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9 if sampling.scheduler == "ddim" else 1e-4, atol=1e-7)


@pytest.mark.parametrize("policy", [sparse, drtune, bridge])
def test_the_peak_does_not_depend_on_the_number_of_steps(case, policy):
    """Each step with a gradient is computed forward and backward by itself."""
    model, sampling = case[0], case[1].with_steps(6)
    peaks = {}
    for k in (2, 6):  # with one step there are no gradients to add up
        chain, latents, at = begin(model, sampling)
        peaks[k] = cost_of(lambda: policy(chain, latents, at, k=k)).peak  # noqa: B023
        assert chain.gradient_steps == k
    assert peaks[6] <= 1.05 * peaks[2], "more than a latent a step is kept"


def test_more_steps_than_there_are_and_one_step_for_two_leaps_are_refused(case):
    model, _ = case
    scheduler = case[1].scheduler
    chain, latents, at = begin(model, Sampling(1, GUIDANCE, 32, 32, scheduler=scheduler))
    with pytest.raises(UsageError, match=r"gradient\.k=2 must lie between 1 and training\.sampling\.steps=1"):
        sparse(chain, latents, at, k=2)
    with pytest.raises(UsageError, match="gradient=leap leaps twice"):
        leap(chain, latents, at, discount=0.3)
