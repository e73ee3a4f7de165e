"""Several scorers as one that is harder to hack: their mean, the lowest of them, or the mean less their disagreement.

A flaw that one scorer has and others lack raises that one alone (Coste et al. 2024, "Reward Model Ensembles Help
Mitigate Overoptimization", section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from textcraftor.config.rules import is_number
from textcraftor.errors import UsageError
from textcraftor.rewards.base import Reward, applies_to, as_reward

COMBINE = ("mean", "min", "lower")
LEAST_VARIANCE = 1e-12  # below it the root has no gradient to speak of


def check_ensemble(members: Mapping | None, combine: object, k: object) -> None:
    """Refuse what cannot be combined.

    Args:
        members: by name; those that are None do not count.

    Raises:
        UsageError: fewer than two members, an unknown `combine`, a `k` that is no number from 0 on.
    """
    names = [str(name) for name, member in (members or {}).items() if member is not None]
    if len(names) < 2:
        raise UsageError(
            f"members={{{', '.join(names)}}} must name at least two scorers: add some, or reward one alone"
        )
    if combine not in COMBINE:
        raise UsageError(f"combine={combine} must be one of {', '.join(COMBINE)}")
    if not is_number(k) or k < 0:  # type: ignore[operator]
        raise UsageError(f"k={k} must be a number, at least 0: it is the weight of the members' disagreement")


class Ensemble(Reward):
    """One score of several members' standardised scores z_i = (score_i - mean_i) / sd_i, of those that apply.

    `mean` is that of the z_i, `min` the lowest of them (worst-case optimisation, Coste et al. 2024, section 3), `lower`
    mean - k * sd, where sd^2 is the mean of (z_i - mean)^2 (their uncertainty-weighted optimisation takes k * sd^2). A
    prompt that no member applies to scores 0 and passes no gradient.

    mean_i and sd_i are of the untuned model's pictures, see `start`, and stay so; before they are 0 and 1.

    Args:
        members: modules or functions `reward(images, prompts) -> (batch,)` by name; None leaves one out.
        combine: mean, min or lower.
        k: of lower, at least 0.

    Raises:
        UsageError: see `check_ensemble`; a member that is an ensemble itself.
    """

    mean: Float[Tensor, " members"]
    spread: Float[Tensor, " members"]

    def __init__(
        self, members: Mapping[str, nn.Module | Callable | None], combine: str = "lower", k: float = 1.0
    ) -> None:
        super().__init__()
        check_ensemble(members, combine, k)
        if nested := [name for name, member in members.items() if isinstance(member, Ensemble)]:
            raise UsageError(f"members.{nested[0]} is an ensemble: name its members here instead")
        modules = {name: as_reward(member) for name, member in members.items() if member is not None}
        self.members, self.combine, self.k = nn.ModuleDict(modules), combine, float(k)
        self.register_buffer("mean", torch.zeros(len(modules)))
        self.register_buffer("spread", torch.ones(len(modules)))
        self.freeze()

    @torch.no_grad()
    def start(self, scores: Mapping[str, Float[Tensor, " pictures"]]) -> None:
        """Take each member's mean and standard deviation from these scores, of the untuned model's pictures that it
        applies to, two at least."""
        each = [scores[name].float() for name in self.members]
        self.mean = torch.stack([one.mean() for one in each]).to(self.mean.device)
        self.spread = torch.stack([one.std() for one in each]).to(self.mean.device)

    def combined(
        self, scores: Float[Tensor, "members batch"], counted: Bool[Tensor, "members batch"]
    ) -> Float[Tensor, " batch"]:
        """The ensemble's score from its members', in float32 at least.

        Args:
            counted: which members apply to which prompt.
        """
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        standard = (scores - self.mean.to(scores)[:, None]) / self.spread.to(scores)[:, None]
        if self.combine == "min":
            lowest = standard.masked_fill(~counted, torch.inf).amin(0)
            return lowest.where(counted.any(0), 0.0)
        count = counted.sum(0).clamp_min(1)
        mean = standard.where(counted, 0.0).sum(0) / count
        if self.combine == "mean":
            return mean
        variance = (standard - mean).where(counted, 0.0).square().sum(0) / count
        return mean - self.k * variance.clamp_min(LEAST_VARIANCE).sqrt()

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        scores = torch.stack([member(images, prompts) for member in self.members.values()])
        return self.combined(scores, self.counted(prompts).to(scores.device))

    def counted(self, prompts: Sequence[str]) -> Bool[Tensor, "members batch"]:
        """Which members apply to which prompt."""
        return torch.tensor([applies_to(member, prompts) for member in self.members.values()])

    def applies(self, prompts: Sequence[str]) -> list[bool]:
        return self.counted(prompts).any(0).tolist()

    def check(self, prompts: Sequence[str]) -> None:
        for member in self.members.values():
            if isinstance(member, Reward):
                member.check(prompts)

    @torch.no_grad()
    def measure(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Each member's own score, by its name, NaN where it does not apply, and what it measures beside."""
        figures = dict[str, Tensor]()
        for (name, member), applies in zip(self.members.items(), self.counted(prompts), strict=True):
            scores = member(images, prompts)
            figures[name] = scores.where(applies.to(scores.device), torch.nan)
            if isinstance(member, Reward):
                figures |= {f"{name}/{one}": values for one, values in member.measure(images, prompts).items()}
        return figures

    def again(self, figures: Mapping[str, np.ndarray]) -> np.ndarray:
        """The ensemble's scores from its members' as `measure` returns them, all of one shape."""
        scores = torch.from_numpy(np.stack([figures[name] for name in self.members]))
        flat = scores.flatten(1).to(self.mean)
        return self.combined(flat, ~flat.isnan()).cpu().numpy().reshape(scores.shape[1:])
