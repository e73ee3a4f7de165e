"""Which pictures a rater sees next, and on which side each of them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from textcraftor.errors import UsageError
from textcraftor.evaluation.bradley_terry import Votes, information_gain
from textcraftor.evaluation.picture_sets import PictureSet
from textcraftor.evaluation.rating import SKIP, Rating, Ratings, Unit

RANDOM, ACTIVE = "random", "active"


def pair_units(sets: Mapping[str, PictureSet]) -> list[Unit]:
    """Every pair of pictures of the same prompt and seed by two of the models.

    Raises:
        UsageError: a single model, or one that shares no prompt and seed with any other.
    """
    if len(sets) < 2:
        raise UsageError(f"models={{{', '.join(sets)}}}: a pair needs two models: give models.a=FOLDER models.b=FOLDER")
    units = [
        Unit(prompt, seed, (one, other))
        for one, other in itertools.combinations(sorted(sets), 2)
        for prompt, seed in sorted(sets[one].files.keys() & sets[other].files.keys())
    ]
    paired = {name for unit in units for name in unit.models}
    if alone := next((name for name in sets if name not in paired), None):
        raise UsageError(
            f"models.{alone} shares no prompt and seed with another model: make the pictures with the same prompts and "
            "seeds"
        )
    return units


def single_units(sets: Mapping[str, PictureSet]) -> list[Unit]:
    """Every picture, to be graded."""
    return [Unit(prompt, seed, (name,)) for name in sorted(sets) for prompt, seed in sorted(sets[name].files)]


def votes_of(ratings: Iterable[Rating], models: Sequence[str]) -> Votes:
    """The answers to pairs of these models as votes; skipped ones are none."""
    kept = [one for one in ratings if one.answer != SKIP and len(one.models) == 2 and {*one.models} <= {*models}]
    return Votes.of(models, [(one.unit.models[0], one.unit.models[1], one.score, one.prompt) for one in kept])


@dataclass(frozen=True)
class Choice:
    """How the next pictures are chosen.

    Args:
        by: random, or active: of two models those whose next vote tells most under the present strengths.
        shared: so many pictures or pairs come first for every rater, so that their agreement can be measured.
        seed: of every order and side.
    """

    by: str
    shared: int
    seed: int

    def order(self, units: Sequence[Unit], question: str, rater: str) -> list[Unit]:
        """The shared ones first, each part in an order of the rater's own; the same after every start."""
        everyones = self._shuffled(units, question)
        parts = everyones[: self.shared], everyones[self.shared :]
        return [unit for part in parts for unit in self._shuffled(part, question, rater)]

    def sides(self, unit: Unit, question: str, rater: str) -> tuple[str, ...]:
        """The unit's models from left to right."""
        turned = self._random(question, rater, unit.prompt, unit.seed, *unit.models).random() < 0.5
        return unit.models[::-1] if turned else unit.models

    def next(self, units: Sequence[Unit], question: str, rater: str, ratings: Ratings) -> Unit | None:
        """What the rater has not answered yet; None where that is nothing."""
        standing = ratings.standing(question)
        done: Collection[Unit] = standing.get(rater, {})
        order = self.order(units, question, rater)
        rest = [unit for unit in order if unit not in done]
        if self.by == RANDOM or not rest or len(rest[0].models) == 1 or rest[0] in order[: self.shared]:
            return rest[0] if rest else None
        models = sorted({name for unit in units for name in unit.models})
        votes = votes_of((rating for mine in standing.values() for rating in mine.values()), models)
        gain = information_gain(votes.wins())
        places = {name: place for place, name in enumerate(models)}
        return max(rest, key=lambda unit: gain[places[unit.models[0]], places[unit.models[1]]])  # the first of them

    def _shuffled(self, units: Sequence[Unit], *words: object) -> list[Unit]:
        return [units[place] for place in self._random(*words).permutation(len(units))]

    def _random(self, *words: object) -> np.random.Generator:
        """Random numbers that depend on the seed and these words alone."""
        digest = hashlib.sha256(json.dumps([self.seed, *words]).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16]))
