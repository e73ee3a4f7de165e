"""What a gradient is made of: the model, the rewards, the policy and the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from textcraftor.data.prompts import PromptDraw
from textcraftor.inference.generate import Sampling
from textcraftor.models.stable_diffusion import StableDiffusion
from textcraftor.rewards.mix import RewardMix
from textcraftor.sampling.chain import Chain
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.sampling.gradients import Rollout
from textcraftor.training.phases import Phases


@dataclass(frozen=True)
class Method:
    """What a gradient is made of; none of it changes while training.

    Args:
        rollout: the gradient policy.
        schedule: which encoder conditions which noise level, here and wherever the encoder is used later.
        detach_negative: no gradient through the unconditional branch.
    """

    model: StableDiffusion
    mix: RewardMix
    rollout: Rollout
    schedule: ConditioningSchedule
    sampling: Sampling
    draw: PromptDraw
    detach_negative: bool = False

    def pictures(
        self, prompts: Sequence[str], seeds: Sequence[int], step: int, kept_steps: int | None, phases: Phases
    ) -> tuple[Tensor, Chain]:
        """Images with gradients, and the chain that made them; some policies give several images a prompt."""
        with phases("encode"):
            negative_prompts = [self.sampling.negative_prompt] * len(prompts)
            encoded = {name: self.model.encode(prompts, negative_prompts, name) for name in self.schedule.encoders}
        with phases("chain"):
            chain = self.sampling.chain(
                self.model,
                seeds,
                rng=self.draw.rng(step),
                detach_negative=self.detach_negative,
                kept_steps=kept_steps,
            )
            latents = self.rollout(chain, chain.start(), partial(self.schedule.at, encoded))
        with phases("decode"):
            return self.model.decode(latents), chain
