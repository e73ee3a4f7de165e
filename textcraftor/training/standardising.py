"""Scores are standardised by the untuned model's pictures: those of a mix, and the members of ensembles."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from textcraftor.errors import UsageError
from textcraftor.evaluation.evaluate import Evaluation
from textcraftor.evaluation.statistics import TIE
from textcraftor.rewards.total import RewardSum


def standardise(rewards: RewardSum, before: Mapping[str, Evaluation], normalize: bool) -> None:
    """Give a mix the means and spreads of the pictures `evaluated`, and put into all of `before` the scores that they
    make: these pictures were scored without them.

    Args:
        before: of the untuned model, by name.
        normalize: whether the mix divides by them; ensembles do in any case.
    """
    measured = before["evaluated"].measures
    for name in rewards.ensembles:
        start_ensemble(rewards, name, before)
    for name in rewards.scorers if normalize else ():
        if not tells_apart(measured[name]):
            raise UsageError(
                "normalize_rewards=true divides by how far scores spread over the evaluated pictures, and "
                f"rewards.{name} gives all of them {measured[name].flat[0]:g}: evaluate prompts that it tells apart, "
                "or leave normalize_rewards out"
            )
    rewards.start(scores_of(rewards, before["evaluated"]))
    if normalize or rewards.ensembles:
        for one in before.values():
            total = rewards.total(scores_of(rewards, one)).cpu().numpy()
            one.measures["total"] = total.reshape(one.measures["total"].shape)


def start_ensemble(rewards: RewardSum, name: str, before: Mapping[str, Evaluation]) -> None:
    """Standardise the members of an ensemble, and put its scores into the figures."""
    ensemble, known = rewards.ensembles[name], dict[str, torch.Tensor]()
    for member in ensemble.members:
        scores = before["evaluated"].measures.get(f"{name}/{member}", np.empty(0))
        scores = scores[~np.isnan(scores)]
        if not tells_apart(scores):
            raise UsageError(
                f"rewards.{name}: its member {member} does not tell the {scores.size} evaluated pictures apart that it "
                "applies to: evaluate prompts that it tells apart, or leave it out by "
                f"rewards.{name}.reward.members.{member}=null"
            )
        known[member] = torch.from_numpy(scores)
    ensemble.start(known)
    for one in before.values():
        absent = np.full(one.measures["total"].shape, np.nan, np.float32)
        each = {member: one.measures.get(f"{name}/{member}", absent) for member in ensemble.members}
        one.measures[name] = ensemble.again(each)


def scores_of(rewards: RewardSum, evaluation: Evaluation) -> dict[str, torch.Tensor]:
    """Each scorer's score of every picture, (pictures,), where the mix is."""
    return {name: torch.from_numpy(evaluation.measures[name].ravel()).to(rewards.mean) for name in rewards.scorers}


def tells_apart(scores: np.ndarray) -> bool:
    """Whether some pictures' scores differ by more than rounding; what divides by their spread needs it."""
    return bool(scores.size > 1 and np.ptp(scores) > TIE * np.abs(scores).max())
