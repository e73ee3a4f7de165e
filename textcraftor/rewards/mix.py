"""The weighted sum of several scorers, every part kept by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from textcraftor.errors import UsageError


class RewardMix(nn.Module):
    """Scorers by name with their weights (TextCraftor, eq. 7).

    Args:
        rewards: modules `reward(images, prompts) -> (batch,)`.
        weights: one for each; a scorer with weight 0 is measured and adds nothing.
    """

    def __init__(self, rewards: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        if not rewards or set(rewards) != set(weights):
            raise UsageError(f"rewards {sorted(rewards)} and weights {sorted(weights)} must name the same scorers")
        self.rewards = nn.ModuleDict(dict(rewards)).eval().requires_grad_(False)
        self.weights = dict(weights)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Every scorer's scores by name, unweighted."""
        return {name: reward(images, prompts) for name, reward in self.rewards.items()}

    def total(self, scores: Mapping[str, Float[Tensor, " batch"]]) -> Float[Tensor, " batch"]:
        """The weighted sum of what `forward` returned."""
        return torch.stack([self.weights[name] * score for name, score in scores.items()]).sum(0)
