"""A claim as data, and the keys of the command that checks claims."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from textcraftor.config.command import Command
from textcraftor.config.fields import (
    by_name,
    choice,
    flag,
    groups_by_name,
    number,
    number_list,
    opens,
    typed_path,
    typed_text,
    whole,
    word,
)
from textcraftor.config.rules import Group, RefusedError, Rule, is_number
from textcraftor.errors import UsageError

SEEDED = ("train", "tune-captions", "enhance")  # commands that a claim runs once for each training seed
MAKING = ("letters", "records")  # and those that make data, once
ALL, SMOKE = "all", "smoke"  # words of the command line that name no claim


KEYS = "a list of keys as on the command line, as {key}=['gradient.k=3']"
PLACE = re.compile(r"\{(\w+)\}")  # of a run's folder in a key


def are_keys(value: Any) -> bool:
    """Whether this is a list of keys as on the command line."""
    return isinstance(value, list) and all(isinstance(one, str) and ("=" in one or one[:1] == "~") for one in value)


def optional(kind: type, rule: Rule) -> Any:
    """A field that is empty where the YAML files leave it out."""
    return dataclasses.field(default_factory=kind, metadata={"rule": rule})


def key_list() -> Any:
    """Keys of a command, as on its command line."""
    return optional(list, Rule(KEYS, ((KEYS, are_keys),), literal=True))


def weights_by_arm() -> Any:
    """Weights by arm, empty where arms are in an order instead."""
    return optional(dict, Rule("a finite number", (("a finite number", is_number),), each=True, judges_null=True))


@dataclass
class Run(Group):
    """`claim.<name>.runs.<run>`: what is trained or made before pictures are compared."""

    command: str = choice((*SEEDED, *MAKING))
    """Of textcraftor; records draws captioned pictures of the model's world."""
    keys: list[str] = key_list()
    """Of that command; `{other}` is the folder of a run that stands above it, of the same training seed."""
    rates: list[float] | None = number_list(
        "a list of learning rates above 0, as {key}=[1e-4,3e-4]",
        lambda value: bool(value) and all(is_number(one) and one > 0 for one in value),
    )
    """Those of which the best is taken: the highest held_out of one run each, of a seed and prompts that the claim does
    not use; null: the command's own."""


@dataclass
class Arm(Group):
    """`claim.<name>.arms.<arm>`: pictures that are compared with those of other arms."""

    keys: list[str] = key_list()
    """Of evaluate; `{run}` is the folder of a run, once for each training seed."""
    base: str | None = word(None)
    """The arm of untuned pictures of the same prompts; null: this arm is one."""


@dataclass
class Check(Group):
    """`claim.<name>.checks.<check>`: one comparison, and what the claim says of it."""

    measure: str = typed_text()
    """Of evaluate: a scorer, total, diversity, or the judge's as judge/taste."""
    of: dict[str, Any] = weights_by_arm()
    """Weights by arm: {tuned: 1, base: -1} is the gain. The weighted sum of the arms' means is the effect."""
    order: list[str] = optional(list, Rule("a list of arms, as {key}=[weak,strong]"))
    """Instead of weights: arms in the order in which the measure is claimed to rise. The effect is the mean rank
    correlation, prompt by prompt, of which Page's L (Page 1963) is a linear function."""
    holds: str = choice(("above", "below", "within"))
    """Whether the effect is claimed to lie above the margin, below it, or between minus the margin and the margin."""
    margin: float = number(default=0.0)
    """In units of the measure; of a rank correlation, from -1 to 1."""


@dataclass
class Claim(Group):
    """`claim.<name>`: what a paper says, and how it is checked."""

    paper: str = typed_text()
    """Its name and number."""
    section: str = typed_text()
    """Where in it."""
    sentence: str = typed_text()
    """The claim in our words."""
    runs: dict[str, Run] = optional(dict, Rule("a group of keys, command, keys and rates", each=True))
    """What is trained or made, by name."""
    arms: dict[str, Arm] = groups_by_name("keys and base")
    """What is compared, by name."""
    checks: dict[str, Check] = groups_by_name("measure, of or order, holds and margin")
    """All must hold for the claim to be supported; one that is contradicted contradicts it."""
    caveat: str | None = typed_text(None)
    """What this check leaves open."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for place, (name, run) in enumerate(self.runs.items()):
            self._check_places(f"runs.{name}.keys", run.keys, list(self.runs)[:place])
        for name, arm in self.arms.items():
            self._check_places(f"arms.{name}.keys", arm.keys, self.runs)
            if arm.base is not None and (arm.base not in self.arms or self.arms[arm.base].base is not None):
                raise RefusedError(
                    f"arms.{name}.base", arm.base, "an arm of untuned pictures, which has no base itself"
                )
        for name, check in self.checks.items():
            arms = [*check.of, *check.order]
            if bool(check.of) == bool(check.order):
                raise RefusedError(f"checks.{name}.of", check.of, "weights by arm, or else order a list of arms")
            if strange := next((one for one in arms if one not in self.arms), None):
                raise RefusedError(f"checks.{name}", strange, f"made of arms of this claim: {', '.join(self.arms)}")

    @staticmethod
    def _check_places(key: str, keys: Sequence[str], known: Iterable[str]) -> None:
        for name in PLACE.findall(" ".join(keys)):
            if name not in known:
                raise RefusedError(
                    key, f"{{{name}}}", f"the folder of a run of this claim: {', '.join(known) or 'none'}"
                )


@dataclass
class Records(Group):
    """`records`: what draws captioned pictures, and its arguments; further ones may be added."""

    _target_: str = word()
    """The import path of a function of a folder, a count, a seed and a split."""


@dataclass
class Claims(Command):
    """textcraftor claims."""

    claim: dict[str, Claim] = groups_by_name("paper, sentence, runs, arms and checks")
    """Claims by name; on the command line simply their names, or all, or smoke: all of them, tiny."""
    seeds: int = whole(least=1, most=1000)
    """Training seeds, from 0 on; more of them go on from what is there."""
    limit: int = whole(least=1)
    """The first so many of each arm's prompts."""
    pictures: int = whole(least=1, most=1000)
    """Of each prompt, with the seeds from 0 on."""
    rate_seed: int = whole(least=1000)
    """The training seed with which learning rates are chosen, which no claim uses."""
    tune_rates: bool = flag()
    """false takes the first of each run's rates."""
    keys: dict[str, Any] = by_name(KEYS, are_keys)
    """Keys of every job, by command."""
    shrink: dict[str, Any] = by_name(KEYS, are_keys)
    """The same, after all others: what makes a scale small."""
    records: dict[str, Any] = opens(Records)
    """What draws captioned pictures of the model's world."""
    lanes: int = whole(least=1, most=256)
    """Jobs at a time, each a process with its share of the cores; 1: in this process."""
    device: str = word()
    """cpu, cuda, cuda:1, or auto: a GPU where there is one."""
    dry_run: bool = flag()
    """Say which jobs are to be done, and do none."""
    shown: int = whole(least=1, most=64)
    """Prompts whose pictures the page shows."""
    docs: str | None = typed_path()
    """A folder of documentation whose ledger (results/claims.json), page (claims.md) and pictures (claims/) are brought
    up to date too; not at a small scale."""


def overrides_of(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """What bare words of the command line choose.

    Args:
        known: the names of all claims.

    Raises:
        UsageError: a word that names no claim.
    """
    for name in words:
        if name not in (ALL, SMOKE, *known):
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}; all; smoke"
            raise UsageError(f"unknown claim {name}; {hint}")
    named = [name for name in dict.fromkeys(words) if name not in (ALL, SMOKE)]
    scale = ["scale=smoke"] if SMOKE in words else []
    return [f"claim=[{','.join(named if named and ALL not in words else known)}]", *scale]
