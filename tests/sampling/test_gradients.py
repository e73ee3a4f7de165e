"""Every gradient policy against finite differences of the function whose gradient it claims to be."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from random_models import make_pipeline

from tests.conftest import PROMPTS, load
from textcraftor.errors import UsageError
from textcraftor.inference.generate import Sampling
from textcraftor.models.model import Model
from textcraftor.sampling.chain import Chain, denoise, guided
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.sampling.gradients import ddpo, direct, full, last_k, low_variance, random_k, refl
from textcraftor.sampling.surrogates import drtune

SAMPLING = Sampling(3, 2.0, 64, 64)
POLICIES = {
    "full": full,
    "last_k": partial(last_k, k=2),
    "random_k": partial(random_k, mean=0.5, sd=0.3),
    "low_variance": partial(low_variance, n=2),
    "refl": partial(refl, first=0.4, last=0.9),
    "direct": partial(direct, first=0.4, last=0.9),
}


KINDS = ["diffusion", "flow"]


@pytest.fixture
def doubled(request, in_float64):
    """A model in float64 with a trainable encoder: the toybox, or where a test asks for a flow a tiny SD 3.5."""
    flow = getattr(request, "param", "diffusion") == "flow"
    return in_float64(Model(make_pipeline("sd35_medium", tiny=True)) if flow else load())


def sampling_of(model) -> Sampling:
    return Sampling(3, 2.0, 32, 32, scheduler="euler") if is_flow(model) else SAMPLING


def is_flow(model) -> bool:
    return model.noise_schedule.prediction == "velocity"


def new_chain(model, **options) -> Chain:
    sampling = sampling_of(model)
    shape = model.family.latent_shape(model.pipeline, sampling.size)
    clean = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    return sampling.chain(model, [1, 2], rng=np.random.default_rng(5), clean=clean, **options)


def reward_of(model, rollout, **options) -> torch.Tensor:
    """A smooth function of the pictures that two prompts give, with gradients into the tuned encoder."""
    chain = new_chain(model, **options)
    encoded = {"tuned": model.encode(PROMPTS[:2], ["", ""], "tuned")}
    schedule = ConditioningSchedule.tuned_on("all", 0, chain.timesteps)
    latents = rollout(chain, chain.start(), partial(schedule.at, encoded))
    return model.vae.decode(model.family.from_latents(model.pipeline, latents)).sample.pow(2).mean()


def encoder_gradient(model, rollout, **options) -> torch.Tensor:
    return gradient_in_encoder(model, reward_of(model, rollout, **options))


def gradient_in_encoder(model, value: torch.Tensor) -> torch.Tensor:
    """Flat, in the tuned encoder's parameters."""
    parameters = list(model.encoders("tuned")["text_encoder"].parameters())
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, gradients, strict=True)]
    )


@torch.no_grad()
def assert_finite_differences(model, analytic: torch.Tensor, value) -> None:
    """A gradient in the tuned encoder, along itself and a random direction, against the values on both sides."""
    parameters = list(model.encoders("tuned")["text_encoder"].parameters())
    flat = torch.nn.utils.parameters_to_vector(parameters).clone()
    direction = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = direction / direction.norm() + analytic / analytic.norm()  # along the random one alone little changes
    values = []
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(flat + sign * 1e-5 * direction, parameters)
        values.append(value())
    difference = (values[0] - values[1]) / 2e-5
    assert difference.abs() > 1e-9, "nothing changes: the test proves nothing"
    torch.testing.assert_close(analytic @ direction, difference, rtol=1e-5, atol=1e-11)


class Constants:
    """Replays, for an objective in which some values are constants, what the first pass found at those places.

    A policy cuts the gradient where it detaches its latents or runs without a gradient. The function whose
    exact gradient it then computes has constants there; finite differences must not move them either.
    """

    def __init__(self, model) -> None:
        self.model, self.found, self.at = model, [], 0
        self._predict = model.predict

    def install(self, monkeypatch) -> None:
        monkeypatch.setattr(self.model, "predict", self.predict)
        monkeypatch.setattr(self.model, "noise_schedule", Replayed(self.model.noise_schedule, self))

    def constant(self, compute):
        """The value of the first pass."""
        if self.at == len(self.found):
            self.found.append(compute())
        self.at += 1
        return self.found[self.at - 1]

    def predict(self, latents, t, branch, guidance_scale=1.0):
        if not self.moves[self.calls % len(self.moves)]:  # without a gradient: its whole output is a constant
            self.calls += 1
            return self.constant(lambda: self._predict(latents, t, branch, guidance_scale).detach())
        self.calls += 1
        return self._predict(latents, t, branch, guidance_scale)

    def value(self, rollout) -> torch.Tensor:
        self.at = self.calls = 0
        with torch.no_grad():
            return reward_of(self.model, rollout)


class Replayed:
    """A noise schedule whose noised latents are constants."""

    def __init__(self, schedule, constants: Constants) -> None:
        self._schedule, self._constants = schedule, constants

    def __getattr__(self, name):
        return getattr(self._schedule, name)

    def add_noise(self, *arguments):
        return self._constants.constant(lambda: self._schedule.add_noise(*arguments))


@pytest.mark.parametrize("doubled", KINDS, indirect=True)
@pytest.mark.parametrize("name", POLICIES)
def test_the_gradient_equals_finite_differences(doubled, name, monkeypatch):
    rollout = POLICIES[name]
    analytic = encoder_gradient(doubled, rollout)
    constants = Constants(doubled)
    moves = []
    original = doubled.predict
    monkeypatch.setattr(doubled, "predict", lambda *a: (moves.append(torch.is_grad_enabled()), original(*a))[1])
    reward_of(doubled, rollout)
    constants.moves = moves
    assert any(moves)
    constants.install(monkeypatch)
    constants.value(rollout)  # finds the constants
    assert_finite_differences(doubled, analytic, lambda: constants.value(rollout))


def test_recomputing_activations_changes_no_gradient(doubled):
    """Stepwise, and block by block with the decoder picture by picture."""
    kept = encoder_gradient(doubled, POLICIES["last_k"])
    stepwise = encoder_gradient(doubled, POLICIES["last_k"], kept_steps=1)
    torch.testing.assert_close(stepwise, kept, rtol=1e-12, atol=1e-15)
    doubled.checkpoint_blocks(denoiser=True, decoder=True)
    torch.testing.assert_close(
        encoder_gradient(doubled, POLICIES["last_k"], kept_steps=0), kept, rtol=1e-10, atol=1e-14
    )


def test_last_k_over_every_step_is_the_full_chain(doubled):
    torch.testing.assert_close(
        encoder_gradient(doubled, partial(last_k, k=3)), encoder_gradient(doubled, full), rtol=1e-12, atol=1e-15
    )


def test_last_k_equals_the_full_chain_whose_early_latents_are_detached(doubled):
    """The gradient through the last step alone, from a second definition: every earlier latent is a constant."""

    def detached(chain, latents, conditioning_at):
        latents = denoise(chain, latents, chain.timesteps[:-1], conditioning_at).detach()
        return denoise(chain, latents, chain.timesteps[-1:], conditioning_at)

    torch.testing.assert_close(
        encoder_gradient(doubled, partial(last_k, k=1)), encoder_gradient(doubled, detached), rtol=1e-12, atol=1e-15
    )


def test_drtune_over_every_step_has_the_full_chains_picture_and_another_gradient(doubled):
    with torch.no_grad():
        torch.testing.assert_close(reward_of(doubled, partial(drtune, k=3)), reward_of(doubled, full))
    every, whole = (encoder_gradient(doubled, rollout) for rollout in (partial(drtune, k=3), full))
    assert (every - whole).norm() > 1e-3 * whole.norm()


def test_detaching_the_unconditional_branch_is_another_objective_with_the_same_pictures(doubled):
    last = POLICIES["last_k"]
    torch.testing.assert_close(reward_of(doubled, last, detach_negative=True), reward_of(doubled, last))
    detached, whole = encoder_gradient(doubled, last, detach_negative=True), encoder_gradient(doubled, last)
    assert (detached - whole).norm() > 1e-3 * whole.norm()


def test_random_k_draws_once_a_batch_and_always_a_suffix(model):
    counts = set()
    for seed in range(12):
        chain = Sampling(8, 1.0, 64, 64).chain(model, [1], rng=np.random.default_rng(seed))
        moves = []
        chain.model = Spy(model, moves)
        random_k(chain, chain.start(), lambda t: model.encode(PROMPTS[:1], [""]), mean=0.6, sd=0.2)
        assert moves == sorted(moves), "a step without a gradient after one with"
        counts.add(sum(moves))
    assert len(counts) > 2


def test_refl_jumps_from_late_steps_alone(model):
    for seed in range(6):
        chain = Sampling(8, 1.0, 64, 64).chain(model, [1], rng=np.random.default_rng(seed))
        refl(chain, chain.start(), lambda t: model.encode(PROMPTS[:1], [""]), first=0.5, last=0.9)
        assert chain.gradient_steps == 1
        assert 5 <= chain.calls <= 8


def test_several_jumps_of_one_chain_have_the_mean_gradient_of_each_alone(doubled):
    """Whose gradient the finite differences above confirm: one chain of 3 calls in place of two."""
    alone = [encoder_gradient(doubled, partial(refl, first=share, last=share)) for share in (1 / 3, 2 / 3)]
    together = encoder_gradient(doubled, partial(refl, first=1 / 3, last=2 / 3, jumps=2))
    torch.testing.assert_close(together, sum(alone) / 2, rtol=1e-10, atol=1e-14)
    chain, encoded = new_chain(doubled), doubled.encode(PROMPTS[:2], ["", ""])
    results = refl(chain, chain.start(), lambda t: encoded, first=1 / 3, last=2 / 3, jumps=2)
    assert (len(results), chain.calls, chain.gradient_steps) == (4, 3, 2)


def test_low_variance_re_noises_every_sample_by_its_own_seed(model):
    """Results are all prompts, then all again; they do not depend on who else is in the batch."""

    def results(seeds, prompts):
        chain = Sampling(3, 2.0, 64, 64).chain(model, seeds)
        encoded = model.encode(prompts, [""] * len(prompts))
        with torch.no_grad():
            return low_variance(chain, chain.start(), lambda t: encoded, n=2)

    both, second = results([1, 2], PROMPTS[:2]), results([2], PROMPTS[1:2])
    assert both.shape[0] == 6
    torch.testing.assert_close(both[1::2], second, atol=1e-4, rtol=0)
    for one, other in itertools.combinations((both[1], both[3], both[5]), 2):
        assert (one - other).abs().max() > 1e-3, "no fresh noise"


def test_every_copy_of_the_noise_is_independent_of_the_others(model):
    """Seeds, small ones and those that training draws: correlations of 2,048 numbers lie within 5 standard errors."""
    chain = SAMPLING.chain(model, [0, 1, 2**47 + 7])
    copies = torch.cat([chain.noise(copy) for copy in range(4)]).flatten(1)
    correlations = torch.corrcoef(copies).fill_diagonal_(0).abs()
    assert correlations.max() < 5 / copies.shape[1] ** 0.5
    torch.testing.assert_close(chain.noise(), chain.start())


class Spy:
    """A model that notes, call by call, whether a gradient is wanted."""

    def __init__(self, model, moves) -> None:
        self._model, self._moves = model, moves

    def __getattr__(self, name):
        return getattr(self._model, name)

    def predict(self, *arguments):
        self._moves.append(torch.is_grad_enabled())
        return torch.zeros_like(arguments[0])


def test_k_beyond_the_chain_is_refused_with_both_numbers(model):
    for policy in (last_k, drtune):
        chain = SAMPLING.chain(model, [0])
        with pytest.raises(UsageError, match=r"gradient.k=4 .* training.sampling.steps=3:"):
            policy(chain, chain.start(), lambda t: None, k=4)


def log_density(model, path: list[torch.Tensor], chain: Chain) -> torch.Tensor:
    """Of a recorded path under the tuned encoder: mean over the elements, sum over the steps."""
    conditioning, total = model.encode(PROMPTS[:2], ["", ""], "tuned"), 0
    moments = flow_grpo if is_flow(model) else ddim_with_noise
    for index, (now, then) in enumerate(itertools.pairwise(path)):
        t = chain.timesteps[index]
        without = model.predict(now, t, conditioning.negative)
        output = without + chain.guidance_scale * (model.predict(now, t, conditioning.prompt) - without)
        mean, variance = moments(model, chain.timesteps, index, output, now)
        if variance > 0:
            total = total - ((then - mean) ** 2).mean((1, 2, 3)) / (2 * variance)
    return total


def ddim_with_noise(model, timesteps, index: int, output, now) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of a step by the equations of DDIM with eta = 1."""
    t, alphas = timesteps[index], torch.as_tensor(model.noise_schedule.alphas_cumprod)
    stride = model.noise_schedule.timesteps // len(timesteps)
    a, before = alphas[t], alphas[t - stride] if t >= stride else torch.tensor(1.0)
    clean = model.noise_schedule.to_x0(output, t, now)
    noise = (now - a.sqrt() * clean) / (1 - a).sqrt()
    variance = (1 - before) / (1 - a) * (1 - a / before)
    return before.sqrt() * clean + (1 - before - variance).sqrt() * noise, variance


def flow_grpo(model, timesteps, index: int, output, now) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of a step by equation 12 of Flow-GRPO, with the next level's strength where all is noise."""
    levels = torch.cat([timesteps.double() / 1000, torch.zeros(1, dtype=torch.float64)])
    t, dt = levels[index], levels[index + 1] - levels[index]
    strength = 0.7 * torch.sqrt(t / (1 - (levels[1] if t == 1 else t)))
    mean = now + dt * (output + strength**2 / (2 * t) * (now + (1 - t) * output))
    return mean, -dt * strength**2


def test_a_flows_drawn_steps_are_flow_grpos():
    model = Model(make_pipeline("sd35_medium", tiny=True))
    sampler, moved = sampling_of(model).sampler(model), []
    output, latents = torch.randn(2, 2, 16, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert sampler.timesteps[0] == 1000, "the first level is all noise"
    for index, t in enumerate(sampler.timesteps):
        mean, sd = sampler.transition(output, t, latents)
        wanted, variance = flow_grpo(model, sampler.timesteps, index, output, latents)
        torch.testing.assert_close(mean, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sd, variance.sqrt().expand_as(sd), rtol=1e-5, atol=1e-6)
        moved.append((mean - sampler.step(output, t, latents)).abs().max())
    assert min(moved) > 1e-3, "the means are those of the steps that are not drawn: the test proves nothing"


@pytest.mark.parametrize("doubled", KINDS, indirect=True)
def test_the_policy_gradient_is_that_of_the_paths_log_density(doubled, monkeypatch):
    """Which no gradient of the pictures enters: finite differences of the density of the path that was drawn."""
    chain, path, predict = new_chain(doubled), [], doubled.predict
    monkeypatch.setattr(doubled, "predict", lambda x, *a: (path.append(x[:2].detach()), predict(x, *a))[1])
    encoded = {"tuned": doubled.encode(PROMPTS[:2], ["", ""], "tuned")}
    schedule = ConditioningSchedule.tuned_on("all", 0, chain.timesteps)
    latents = ddpo(chain, chain.start(), partial(schedule.at, encoded))
    assert not latents.requires_grad
    monkeypatch.setattr(doubled, "predict", predict)
    path.append(latents)
    weights = torch.tensor([1.0, -0.5])  # advantages
    analytic = gradient_in_encoder(doubled, (weights * chain.log_prob).sum())
    assert_finite_differences(doubled, analytic, lambda: (weights * log_density(doubled, path, chain)).sum())


def test_the_policy_gradient_draws_each_samples_steps_from_its_seed(model):
    """So the batch changes nothing; and with eta = 1 in every step the path is the stock sampler's."""
    encoded = {"tuned": model.encode(PROMPTS[:2], ["", ""], "original")}
    schedule = ConditioningSchedule.tuned_on("all", 0, new_chain(model).timesteps)
    with torch.no_grad():
        chain = new_chain(model)
        both = ddpo(chain, chain.start(), partial(schedule.at, encoded))
        alone = SAMPLING.chain(model, [2], rng=np.random.default_rng(5))
        second = {"tuned": encoded["tuned"].map(lambda tensor: tensor[1:])}
        one = ddpo(alone, alone.start(), partial(schedule.at, second))
        stock, latents = SAMPLING.sampler(model).scheduler, alone.start()
        for index, t in enumerate(stock.timesteps):
            output = guided(alone, latents, t, second["tuned"])
            latents = stock.step(output, t, latents, eta=1.0, variance_noise=alone.noise(index + 1)).prev_sample
    torch.testing.assert_close(both[1:], one, rtol=0, atol=1e-4)
    torch.testing.assert_close(one, latents, rtol=0, atol=1e-4)
    with pytest.raises(UsageError, match="draws its steps, which"):
        ddpo(Sampling(3, 2.0, 64, 64, scheduler="euler").chain(model, [1, 2]), both, partial(schedule.at, encoded))


def test_the_policy_gradient_draws_a_flows_steps_from_each_samples_seed():
    """Whoever else is in the batch; and the mean of the next step is not where the path goes."""
    model = Model(make_pipeline("sd35_medium", tiny=True))
    encoded = model.encode(PROMPTS[:2], ["", ""])

    def ends(seeds, said, rollout=ddpo):
        chain = sampling_of(model).chain(model, seeds, rng=np.random.default_rng(5))
        with torch.no_grad():
            return rollout(chain, chain.start(), lambda t: said)

    second = encoded.map(lambda tensor: tensor[1:])
    both, one, other = ends([1, 2], encoded), ends([2], second), ends([3], second)
    torch.testing.assert_close(both[1:], one, rtol=0, atol=1e-5)
    assert (one - other).abs().max() > 1e-1
    assert (one - ends([2], second, full)).abs().max() > 1e-1, "nothing is drawn"
