"""The jobs that one claim needs: trials that choose learning rates, training runs, and evaluations of its arms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from textcraftor.claims.jobs import Job, Workshop
from textcraftor.config.claims import PLACE, SEEDED, Arm, Check, Claim, Run
from textcraftor.files.reading import read_json

JOBS = "jobs"  # the folder of the jobs' folders


@dataclass(frozen=True)
class Plan:
    """The jobs of a claim.

    Args:
        seeds: training seeds, from 0 on.
        rate_seed: the training seed of the trials; None takes the first of each run's rates without any.
        common: keys of every evaluation.
    """

    claim: Claim
    workshop: Workshop
    seeds: int
    rate_seed: int | None
    common: tuple[str, ...]

    @property
    def first_rates(self) -> dict[str, float]:
        """Of each run that has several learning rates, the first."""
        return {name: run.rates[0] for name, run in self.claim.runs.items() if run.rates}

    def trials(self) -> dict[str, dict[float, Job]]:
        """By run and learning rate, one training each; runs that they need have the first of their own rates."""
        if self.rate_seed is None:
            return {}
        return {
            name: {rate: self._run(name, self.rate_seed, {name: rate}) for rate in self.claim.runs[name].rates or ()}
            for name in self.first_rates
        }

    def rates(self) -> dict[str, float]:
        """The learning rates whose trials have the highest held-out figure, on prompts that no claim compares."""
        return self.first_rates | {
            name: max(jobs, key=lambda rate: read_json(jobs[rate].folder / "summary.json")["held_out"])
            for name, jobs in self.trials().items()
        }

    def arms(self, rates: Mapping[str, float]) -> dict[str, list[Job]]:
        """The evaluations of each arm: one for every training seed, or one where nothing is trained."""
        arms = self.claim.arms
        bases = {name: self._evaluation(arm, 0, rates, None) for name, arm in arms.items() if arm.base is None}
        return {
            name: [self._evaluation(arm, seed, rates, bases.get(arm.base or "")) for seed in self.seeds_of(arm)]
            for name, arm in arms.items()
        }

    def seeds_of(self, arm: Arm) -> range:
        """The training seeds of an arm; one stands for all where nothing is trained."""
        return range(self.seeds if self.is_trained(arm) else 1)

    def is_trained(self, part: Arm | Run) -> bool:
        """Whether an arm or run has training seeds: it is of a command that trains, or it needs such a run."""
        needed = [self.claim.runs[name] for name in PLACE.findall(" ".join(part.keys)) if name in self.claim.runs]
        return getattr(part, "command", None) in SEEDED or any(map(self.is_trained, needed))

    def _run(self, name: str, seed: int, rates: Mapping[str, float]) -> Job:
        return self.workshop.run(self.claim.runs, name, seed, self.first_rates | dict(rates))

    def _evaluation(self, arm: Arm, seed: int, rates: Mapping[str, float], base: Job | None) -> Job:
        needed = PLACE.findall(" ".join(arm.keys))
        places = {name: self._run(name, seed, rates) for name in self.claim.runs if name in needed}
        return self.workshop.job("evaluate", [*self.common, *arm.keys], places, base)


def plans_of(config: DictConfig, folder: Path) -> dict[str, Plan]:
    """The plans of the claims that a configuration chooses, by name."""
    values: Any = OmegaConf.to_container(config, resolve=True)
    workshop = Workshop(folder.resolve() / JOBS, *(values[part] for part in ("keys", "shrink", "records", "device")))
    rate_seed = values["rate_seed"] if values["tune_rates"] else None
    common = (f"limit={values['limit']}", f"seeds={list(range(values['pictures']))}".replace(" ", ""))
    return {
        name: Plan(claim_of(claim), workshop, values["seeds"], rate_seed, common)
        for name, claim in values["claim"].items()
    }


def claim_of(values: Mapping[str, Any]) -> Claim:
    """A claim of plain values."""
    kinds: dict[str, Any] = {"runs": Run, "arms": Arm, "checks": Check}
    built = {part: {name: kind(**one) for name, one in values[part].items()} for part, kind in kinds.items()}
    return Claim(**{**values, **built})
