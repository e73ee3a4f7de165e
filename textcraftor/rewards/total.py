"""The weighted sum of several scorers, every part kept by name."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from textcraftor.assets import is_address, looks_local
from textcraftor.config.making import made
from textcraftor.config.objects import path_of
from textcraftor.errors import UsageError, is_out_of_memory, one_line
from textcraftor.rewards.base import Reward, applies_to, as_reward, check_prompts
from textcraftor.rewards.ensemble import COMBINE, Ensemble, check_ensemble
from textcraftor.rewards.ocr import quoted
from textcraftor.rewards.one_by_one import score_at_once, visiting

Scores = Mapping[str, Float[Tensor, " batch"]]


class RewardSum(nn.Module):
    """Scorers by name with their weights (TextCraftor, eq. 7).

    Args:
        rewards: modules or functions `reward(images, prompts) -> (batch,)`.
        weights: one for each; a scorer with weight 0 is measured and adds nothing.
        normalize: standardise every score before it is weighted, so that weights compare scorers of any scale.
        targets: of some scorers; training raises such a score up to its target and no further.
        momentum: of the running mean and variance.
    """

    mean: Tensor
    variance: Tensor
    first_mean: Tensor
    first_variance: Tensor

    def __init__(
        self,
        rewards: Mapping[str, nn.Module | Callable],
        weights: Mapping[str, float],
        normalize: bool = False,
        targets: Mapping[str, float] | None = None,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        if not rewards or set(rewards) != set(weights):
            raise UsageError(f"rewards {sorted(rewards)} and weights {sorted(weights)} must name the same scorers")
        modules = {name: as_reward(reward) for name, reward in rewards.items()}
        self.scorers = nn.ModuleDict(modules).eval().requires_grad_(False)
        self.weights, self.normalize, self.momentum = dict(weights), normalize, momentum
        self.targets = dict(targets or {})
        self.one_by_one = self.away = False
        for name in ("", "first_"):
            self.register_buffer(f"{name}mean", torch.zeros(len(modules)))
            self.register_buffer(f"{name}variance", torch.ones(len(modules)))

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Every scorer's scores by name, unweighted. One that adds nothing passes no gradient."""
        scores = {}
        for name, reward in self.scorers.items():
            with blamed(name), torch.set_grad_enabled(torch.is_grad_enabled() and self.weights[name] != 0):
                scores[name] = self._visit(reward, images, prompts) if self.one_by_one else reward(images, prompts)
        return scores

    def _visit(
        self, reward: nn.Module, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, " batch"]:
        with visiting(reward, images.device) if self.away else contextlib.nullcontext():
            if not (torch.is_grad_enabled() and images.requires_grad):
                return reward(images, prompts)
            return score_at_once(lambda shown: reward(shown, prompts), images)

    def work_one_by_one(self, away: bool) -> None:
        """Let scorers work one after another, and where `away` be on the device only then."""
        self.one_by_one, self.away = True, away
        if away:
            self.scorers.to("cpu")

    def total(self, scores: Scores) -> Float[Tensor, " batch"]:
        """The weighted sum of what `forward` returned: the figure that is compared before and after.

        With `normalize` each score is standardised as it was before training, see `start`.
        """
        return self._weighted(scores, self.first_mean, self.first_variance)

    def objective(self, scores: Scores) -> Float[Tensor, " batch"]:
        """What training raises: `total`, but with `normalize` by running statistics, see `observe`.

        A scorer with a target adds minus its hinge, max(0, target - score), instead of its score: ReFL's loss
        (Xu et al. 2023, eq. 4).
        """
        capped = {
            name: score.clamp(max=self.targets[name]) if name in self.targets else score
            for name, score in scores.items()
        }
        return self._weighted(capped, self.mean, self.variance, self.targets)

    def advantage(self, scores: Scores) -> Float[Tensor, " batch"]:
        """How far the objective is above its running mean, without a gradient: what a policy gradient raises."""
        usual = {name: self.mean[i].expand_as(score) for i, (name, score) in enumerate(scores.items())}
        return (self.objective(scores) - self.objective(usual)).detach()

    def _weighted(
        self, scores: Scores, mean: Tensor, variance: Tensor, targets: Mapping[str, float] | None = None
    ) -> Float[Tensor, " batch"]:
        parts = []
        for i, (name, score) in enumerate(scores.items()):
            origin = (targets or {}).get(name, mean[i] if self.normalize else 0.0)
            scale = variance[i].sqrt() if self.normalize else 1.0
            parts.append(self.weights[name] * (score - origin) / scale)
        return torch.stack(parts).sum(0)

    @torch.no_grad()
    def start(self, scores: Scores) -> None:
        """Take mean and variance from these scores: of the untuned model's pictures, before training.

        One picture has no variance; 1 stands for it.
        """
        each = torch.stack([score.to(self.mean) for score in scores.values()])
        spread = each.var(1).clamp_min(1e-12) if each.shape[1] > 1 else torch.ones_like(self.mean)
        self.first_mean, self.first_variance = each.mean(1), spread
        self.mean, self.variance = self.first_mean.clone(), self.first_variance.clone()

    @staticmethod
    @torch.no_grad()
    def moments(scores: Scores) -> Float[Tensor, " twice_rewards"]:
        """Every score's mean and then every score's mean square, in float64: what processes average and `observe`."""
        each = torch.stack([score.detach().double() for score in scores.values()])
        return torch.cat([each.mean(1), each.square().mean(1)])

    @torch.no_grad()
    def observe(self, moments: Float[Tensor, " twice_rewards"]) -> None:
        """Let the running statistics take in one step's scores, by their `moments`."""
        mean, mean_square = moments.chunk(2)
        running = self.mean.double().lerp(mean, 1 - self.momentum)
        spread = mean_square - 2 * running * mean + running**2
        self.mean.copy_(running)
        self.variance.copy_(self.variance.double().lerp(spread, 1 - self.momentum).clamp_min(1e-12))

    @property
    def ensembles(self) -> dict[str, Ensemble]:
        """The scorers that are made of several, by name."""
        return {name: reward for name, reward in self.scorers.items() if isinstance(reward, Ensemble)}

    def applies(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Which prompts each scorer judges, bool (prompts,)."""
        return {name: np.array(applies_to(reward, prompts), bool) for name, reward in self.scorers.items()}

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that a scorer cannot judge."""
        check_prompts(prompts, len(prompts))
        for name, reward in self.scorers.items():
            if isinstance(reward, Reward):
                with blamed(name):
                    reward.check(prompts)

    def measure(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """What scorers report beside their scores, as `<name>/<figure>`."""
        figures = dict[str, Tensor]()
        for name, reward in self.scorers.items():
            if isinstance(reward, Reward):
                with blamed(name), visiting(reward, images.device) if self.away else contextlib.nullcontext():
                    figures |= {
                        f"{name}/{figure}": values for figure, values in reward.measure(images, prompts).items()
                    }
        return figures


@contextlib.contextmanager
def blamed(name: str) -> Iterator[None]:
    """Print the traceback of a scorer's error, then name the scorer in one line."""
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        traceback.print_exception(error)
        message = f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
        raise UsageError(f"rewards.{name} failed, see above ({message}): mend it, or rewards.{name}=null") from error


def check_rewards(config: Mapping, training: bool = False) -> None:
    """Refuse scorers of a command's configuration that cannot be loaded, before anything is, and a reader without an
    OCR scorer.

    Args:
        training: whether there will be the untuned model's pictures, which an ensemble is standardised by.
    """
    parts = parts_of(config["rewards"])
    if not parts:
        raise UsageError("rewards names no scorer: choose some, such as rewards=hpsv2")
    for name, part in parts.items():
        if part.reward["_target_"] == path_of(Ensemble):
            _check_members(name, part.reward, training)
    reader = (config["model"]["scorers"].get("ocr") or {}).get("recogniser")
    packed = isinstance(reader, str) and Path(reader).parent == Path(__file__).parent  # by ocr=published alone
    if packed and not reads_text(parts):
        raise UsageError(
            f"ocr=published chooses the reader of an OCR scorer, and rewards has none, only {', '.join(parts)}: add it "
            "by +reward@rewards.ocr=ocr, or leave ocr=published out"
        )
    for place, scorer in scorers_of(parts):
        for key, value in scorer.items():
            local = isinstance(value, str) and not str(key).startswith("_") and not is_address(value)
            if local and looks_local(value) and not Path(value).expanduser().exists():
                raise UsageError(f"{place}.{key}={value} does not exist")


def _check_members(name: str, reward: Mapping, training: bool) -> None:
    try:
        check_ensemble(reward.get("members"), reward.get("combine", COMBINE[0]), reward.get("k", 0))
    except UsageError as error:
        raise UsageError(f"rewards.{name}.reward.{error}") from error
    if not training:
        raise UsageError(
            f"rewards.{name} is an ensemble, which is standardised by the untuned model's pictures; training alone has "
            f"them: give its members as scorers of their own, and rewards.{name}=null"
        )


def scorers_of(parts: Mapping) -> Iterator[tuple[str, Mapping]]:
    """Each scorer's configuration with its key, the members of ensembles included.

    Args:
        parts: see `parts_of`.
    """
    for name, part in parts.items():
        place = f"rewards.{name}.reward"
        yield place, part.reward
        members = parts_of(part.reward.get("members") or {})
        yield from ((f"{place}.members.{member}", scorer) for member, scorer in members.items())


def reads_text(parts: Mapping) -> bool:
    """Whether a scorer reads what is written in pictures."""
    return any(scorer.get("recogniser") for _, scorer in scorers_of(parts))


def judged_by_readers(config: Mapping) -> Callable[[str], list[str]] | None:
    """What tells the prompts that the readers of a mix judge: the texts that a prompt quotes; None without a reader."""
    return quoted if reads_text(parts_of(config)) else None


def parts_of(config: Mapping) -> dict[str, Any]:
    """The scorers by name; `rewards.<name>=null` takes one out."""
    return {str(name): part for name, part in config.items() if part is not None}


def load_rewards(config: Mapping, normalize: bool = False) -> RewardSum:
    """What `rewards` describes: name -> {reward, weight}.

    A scorer is whatever `reward._target_` names: a class, a function that loads one, or, with `_partial_: true`, a
    function of images and prompts.
    """
    rewards = {}
    for name, part in parts_of(config).items():
        try:
            rewards[name] = made(part.reward)
        except UsageError:
            raise
        except Exception as error:
            reason = one_line(error) or type(error).__name__
            raise UsageError(f"rewards.{name}: {part.reward.get('_target_')} cannot be loaded: {reason}") from error
        except SystemExit as error:
            raise UsageError(f"rewards.{name}: {part.reward.get('_target_')} ends the program: mend it") from error
    parts = parts_of(config)
    weights = {name: float(part.weight) for name, part in parts.items()}
    targets = {name: float(part.target) for name, part in parts.items() if part.get("target") is not None}
    return RewardSum(rewards, weights, normalize, targets)
