"""Gradient policies that roll the chain out without a graph, and then put a small surrogate graph behind its result.

The reward sees the real picture; the gradient is that of the surrogate (LeapAlign, arXiv 2604.15311; FlowBP, arXiv
2606.11075, which sees DRTune, LeapAlign and others as one family).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from textcraftor.errors import UsageError
from textcraftor.models.base import Branch, Conditioning
from textcraftor.models.sampler import Sampler
from textcraftor.sampling.chain import Chain, ConditioningAt, guided, output_at
from textcraftor.sampling.needs import any_of, check_k, needs

DISTANCE = 0.1  # tau of LeapAlign: a leap that misses by less counts in full


@dataclass(frozen=True)
class Trajectory:
    """A chain that was rolled out without a graph.

    Args:
        inputs: the latents that the denoiser saw at each timestep, scaled as it wants them.
        final: the clean latents.
        sampler: as it was at the beginning.
    """

    inputs: list[Tensor]
    final: Float[Tensor, "batch channels h w"]
    sampler: Sampler

    @classmethod
    @torch.no_grad()
    def of(
        cls, chain: Chain, latents: Float[Tensor, "batch channels h w"], conditioning_at: ConditioningAt
    ) -> Trajectory:
        """Roll a chain out."""
        sampler, inputs = copy.deepcopy(chain.sampler), list[Tensor]()
        for t in chain.timesteps:
            inputs.append(chain.sampler.scaled(latents, t))
            latents = chain.sampler.step(output_at(chain, inputs[-1], t, conditioning_at), t, latents)
        return cls(inputs, latents, sampler)

    def shares(self, active: Sequence[int], begin: int | None = None) -> Float[Tensor, "changes steps"]:
        """How much of a change the sampler carries to each later step's latents and, in the last column, to the result;
        samplers are linear in latents and outputs, so that this holds for any change.

        Args:
            active: steps whose outputs change, one a row.
            begin: a step whose latents change, in a last row.
        """
        sampler, dtype = copy.deepcopy(self.sampler), self.final.dtype
        rows = len(active) + (begin is not None)
        latents, seen = torch.zeros(rows, 1, 1, 1, dtype=dtype), list[Tensor]()
        for step, t in enumerate(sampler.timesteps):
            if step == begin:
                latents[-1] += 1
            sampler.scaled(latents, t)  # some keep count of their steps by it
            seen.append(latents)
            output = torch.zeros(rows, 1, 1, 1, dtype=dtype)
            output[[row for row, one in enumerate(active) if one == step]] = 1
            latents = sampler.step(output, t, latents)
        return torch.stack([one.flatten() for one in [*seen, latents]], 1)


def _check_leaps(steps: int, **options: float) -> None:
    if steps < 2:
        raise UsageError(f"gradient=leap leaps twice: training.sampling.steps={steps} must be at least 2")


@needs(check=_check_leaps, reach=lambda steps, **options: steps - 1)
def leap(
    chain: Chain, latents: Float[Tensor, "batch channels h w"], conditioning_at: ConditioningAt, *, discount: float
) -> Float[Tensor, "batch channels h w"]:
    """Through two steps of any length, from a drawn time to a later one and from there to the picture (LeapAlign, eq. 6
    to 10); samples whose leaps miss what the chain really did count less, see `Chain.weight`.

    Args:
        discount: of the gradient that passes through both leaps, in [0, 1]: .3 in the paper for HPSv2.1, .1 for
            PickScore; 0 is DRTune's cut.
    """
    steps = len(chain.timesteps)
    _check_leaps(steps)
    rolled, schedule = Trajectory.of(chain, latents, conditioning_at), chain.model.noise_schedule
    first, second = sorted(chain.rng.choice(steps, 2, replace=False).tolist())
    t, later = chain.timesteps[first], chain.timesteps[second]
    output = output_at(chain, rolled.inputs[first], t, conditioning_at)
    guess = schedule.jump(output, t, rolled.inputs[first], later)
    between = connected(guess, rolled.inputs[second])
    output = output_at(chain, discounted(between, discount), later, conditioning_at)
    picture = schedule.to_x0(output, later, between)
    misses = [(guess - rolled.inputs[second]).detach(), (picture - rolled.final).detach()]
    chain.weight = 1 / sum(miss.abs().mean((1, 2, 3)).clamp_min(DISTANCE) for miss in misses)
    return connected(picture, rolled.final)


def connected(guess: Tensor, real: Tensor) -> Tensor:
    """The real value with the guess's gradient."""
    return guess + (real - guess).detach()


def discounted(tensor: Tensor, share: float) -> Tensor:
    """The same value with a share of its gradient."""
    return share * tensor + (1 - share) * tensor.detach()


@needs(check=check_k, reach=any_of)
def sparse(
    chain: Chain,
    latents: Float[Tensor, "batch channels h w"],
    conditioning_at: ConditioningAt,
    *,
    k: int,
    late: float = 1.0,
    scale: float = 0.5,
) -> Float[Tensor, "batch channels h w"]:
    """Through k drawn steps, none through the denoiser's latent input, in the memory of one step (FlowBP, Sparse).

    Args:
        late: a step's chance grows with this power of its place in the chain.
        scale: of the gradient.
    """
    check_k(len(chain.timesteps), k)
    return _through(chain, latents, conditioning_at, _drawn(chain, k, late), scale)


@needs(check=check_k, reach=lambda steps, k: -(-steps // k))
def drtune(
    chain: Chain, latents: Float[Tensor, "batch channels h w"], conditioning_at: ConditioningAt, *, k: int
) -> Float[Tensor, "batch channels h w"]:
    """Through k evenly spaced steps, none through the denoiser's latent input (DRTune, Wu et al. 2024, algorithm 1).

    The gradient reaches early steps by the sampler's own sum alone, so that it cannot explode.
    """
    steps = len(chain.timesteps)
    check_k(steps, k)
    offset = chain.rng.uniform()
    return _through(chain, latents, conditioning_at, sorted({int((i + offset) * steps / k) for i in range(k)}), 1.0)


@needs(check=check_k, reach=any_of)
def bridge(
    chain: Chain,
    latents: Float[Tensor, "batch channels h w"],
    conditioning_at: ConditioningAt,
    *,
    k: int,
    discount: float = 0.3,
    late: float = 1.0,
    scale: float = 0.5,
) -> Float[Tensor, "batch channels h w"]:
    """As `sparse`, with one nested path: the later half of the steps sees what the earlier changes (FlowBP, Bridge).

    Args:
        discount: of the gradient through the later steps' latent input, in [0, 1].
    """
    check_k(len(chain.timesteps), k)
    active = _drawn(chain, k, late)
    return _through(chain, latents, conditioning_at, active, scale, active[len(active) // 2], discount)


def _drawn(chain: Chain, k: int, late: float) -> list[int]:
    """k different steps of a chain in their order."""
    chances = (np.arange(len(chain.timesteps)) + 1.0) ** late
    return sorted(chain.rng.choice(len(chances), k, replace=False, p=chances / chances.sum()).tolist())


def _through(
    chain: Chain,
    latents: Float[Tensor, "batch channels h w"],
    conditioning_at: ConditioningAt,
    active: Sequence[int],
    scale: float,
    begin: int | None = None,
    discount: float = 0.0,
) -> Float[Tensor, "batch channels h w"]:
    """x_0 + sum_i w_i (v_i - stop(v_i)), w_i what the sampler makes of the output of step i; from step `begin` on the
    denoiser sees latents that the earlier steps have changed."""
    rolled = Trajectory.of(chain, latents, conditioning_at)
    if not torch.is_grad_enabled():
        return rolled.final
    chain.deferred = True
    shares = rolled.shares(active, begin)
    nested, result = None, rolled.final
    for row, step in enumerate(active):
        t, seen = chain.timesteps[step], rolled.inputs[step]
        if nested is not None:
            reach = float(shares[-1, step]) * discount
            seen = seen + reach * chain.sampler.scaled(nested, t)
        change = deferred_output(chain, seen, t, conditioning_at(t))
        if begin is not None and step < begin:
            add = float(shares[row, begin]) * change
            nested = add if nested is None else nested + add
        else:
            result = result + scale * float(shares[row, -1]) * change
    return result if nested is None else result + scale * float(shares[-1, -1]) * nested


def deferred_output(chain: Chain, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """Zero, with the gradient of the guided output: it is computed in the backward pass alone, and by itself."""
    texts = [one for branch in conditioning.branches for one in branch.mixed.values()]
    learning = [weight for weight in chain.model.denoiser.parameters() if weight.requires_grad]
    chain.gradient_steps += 1
    chain.calls += 1

    def compute(inputs: Sequence[Tensor]) -> Tensor:
        embeds = iter(inputs[1:])
        return guided(chain, inputs[0], t, conditioning.change(lambda branch: _replaced(branch, embeds)))

    return _Deferred.apply(compute, learning, latents, *texts, *learning)


def _replaced(branch: Branch, embeds: Iterator[Tensor]) -> Branch:
    """A branch with other embeddings, in their order."""
    return Branch({name: next(embeds) for name in branch.mixed}, branch.fixed)


class _Deferred(torch.autograd.Function):
    """A computation whose value is not needed, only its gradient in its inputs and in the weights that learn."""

    @staticmethod
    def forward(ctx, compute, learning, latents, *others):
        ctx.compute, ctx.learning = compute, learning
        ctx.save_for_backward(latents, *others[: len(others) - len(learning)])
        return torch.zeros_like(latents)

    @staticmethod
    def backward(ctx, gradient):
        wanted = ctx.needs_input_grad[2:]
        inputs = [one.detach().requires_grad_(needs) for one, needs in zip(ctx.saved_tensors, wanted, strict=False)]
        with torch.enable_grad():
            output = ctx.compute(inputs)
        every = [*inputs, *ctx.learning]
        needed = [one for one in every if one.requires_grad]
        gradients = iter(torch.autograd.grad(output, needed, gradient, allow_unused=True))
        return None, None, *(next(gradients) if one.requires_grad else None for one in every)
