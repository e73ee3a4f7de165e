"""What one prompt of reward tuning costs in memory, and the ways to spend less."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor

from textcraftor.data.prompts import PromptDraw
from textcraftor.errors import UsageError
from textcraftor.inference.generate import Sampling
from textcraftor.models.base import Conditioning
from textcraftor.models.model import Model
from textcraftor.rewards.total import RewardSum
from textcraftor.sampling.chain import guided
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.sampling.gradients import Rollout
from textcraftor.training.counting import Cost, cost_of, make_gradients, recomputing
from textcraftor.training.latents import PictureDraw


class Method(Protocol):
    """What reward tuning computes with."""

    @property
    def model(self) -> Model: ...
    @property
    def rewards(self) -> RewardSum: ...
    @property
    def rollout(self) -> Rollout: ...
    @property
    def schedule(self) -> ConditioningSchedule: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def draw(self) -> PromptDraw | PictureDraw: ...
    @property
    def detach_negative(self) -> bool: ...


class Activations:
    """What one prompt costs on the real model, each part measured when it is first asked for."""

    def __init__(self, method: Method, prompt: str) -> None:
        self.method = method
        sampling, schedule, denoiser = method.sampling, method.schedule, method.model.denoiser
        self.prompt = prompt
        make_gradients(method.model)
        mixed = denoiser.dtype != method.model.compute_dtype
        self.cast = sum(p.numel() for p in denoiser.parameters()) * method.model.compute_dtype.itemsize if mixed else 0
        options = {"detach_negative": method.detach_negative, "clean": method.draw.clean(0, 1, [0])}
        self.chain = sampling.chain(method.model, [0], kept_steps=0, **options)
        with torch.no_grad():
            encoded = self._encode()
        self.conditioning_at = partial(schedule.at, {name: one.map(_leaf) for name, one in encoded.items()})
        latents = method.rollout(self.chain, self.chain.start(), self.conditioning_at)
        self.latents, self.through_pictures = latents.detach(), latents.requires_grad
        self.pictures, self.gradient_steps = len(self.latents), self.chain.gradient_steps

    def _encode(self) -> dict[str, Conditioning]:
        return self.method.sampling.encode(self.method.model, [self.prompt], self.method.schedule.encoders)

    def _step(self, blocks: bool) -> Cost:
        t, start = self.chain.timesteps[-1], self.chain.noise()
        with recomputing(self.method.model, denoiser=blocks):
            cost = cost_of(lambda: guided(self.chain, _leaf(start), t, self.conditioning_at(t)))
        return Cost(cost.kept - self.cast, cost.peak - self.cast)

    def _decoding(self, recompute: bool) -> Cost:
        with recomputing(self.method.model, decoder=recompute):
            return cost_of(lambda: self.method.model.decode(self._input(self.latents[:1])))

    def _input(self, tensor: Tensor) -> Tensor:
        """As it comes to decoder and scorers: with a gradient, unless the policy has none there."""
        return _leaf(tensor) if self.through_pictures else tensor

    @cached_property
    def encoding(self) -> Cost:
        def everything() -> Tensor:
            embeds = [one for each in self._encode().values() for one in each.prompt.mixed.values()]
            return torch.cat([one.flatten() for one in embeds])

        return cost_of(everything)

    @cached_property
    def step(self) -> Cost:
        return self._step(blocks=False)

    @cached_property
    def step_by_blocks(self) -> Cost:
        return self._step(blocks=True)

    @cached_property
    def decoding(self) -> Cost:
        return self._decoding(recompute=False)

    @cached_property
    def decoding_again(self) -> Cost:
        return self._decoding(recompute=True)

    @cached_property
    def reward(self) -> Cost:
        return self._reward(one_by_one=False)

    @cached_property
    def reward_one_by_one(self) -> Cost:
        return self._reward(one_by_one=True)

    def _reward(self, one_by_one: bool) -> Cost:
        with torch.no_grad():
            images = self.method.model.decode(self.latents[:1])
        rewards, shown = self.method.rewards, self._input(images)

        def objective() -> Tensor:
            scores = rewards(shown, [self.prompt])
            for name, score in scores.items():
                if self.through_pictures and rewards.weights[name]:
                    self._check_differentiable(name, score)
            return rewards.objective(scores)

        before, rewards.one_by_one = rewards.one_by_one, one_by_one
        try:
            return cost_of(objective)
        finally:
            rewards.one_by_one = before

    @staticmethod
    def _check_differentiable(name: str, score: Tensor) -> None:
        """Refuse a scorer that this policy could learn nothing from."""
        if not score.requires_grad:
            raise UsageError(
                f"rewards.{name} passes no gradient to the pictures: gradient=ddpo learns from such a scorer too"
            )

    @property
    def choices(self) -> list[tuple[int, bool, bool]]:
        steps = self.gradient_steps
        if self.chain.deferred:  # one step at a time, whatever their number
            return [(0, False, True), (0, False, False), (0, True, False)]
        by_steps = [(kept, False, False) for kept in range(steps, -1, -1)]
        return [(steps, False, True), *by_steps, (steps, True, False), (0, True, False)]

    def peak(self, kept: int, blocks: bool, decoder: bool, prompts: int, together: bool = True) -> float:
        texts = self.encoding.kept * (prompts + 1) / 2  # the negative prompt is encoded once for all
        casts = (kept + 1) * self.cast  # each step under autocast keeps a copy of the weights, whatever the batch
        step = self.step_by_blocks if blocks else self.step
        reward = self.reward if together else self.reward_one_by_one
        held, pictures = casts + texts + kept * step.kept * prompts, self.pictures * prompts
        decoded = self.decoding.kept * pictures if decoder else 0.0
        rewarding = held + decoded + reward.peak * pictures
        decoding = held + (self.decoding.peak * pictures if decoder else self.decoding_again.peak)
        if kept < self.gradient_steps:
            stepping = held + step.peak * prompts
        else:
            stepping = held + (step.peak - step.kept) * prompts
        return max(rewarding, decoding, stepping)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(True)
