"""What people chose, as data to learn from: their pictures, and which of two each of them preferred."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig

from textcraftor.errors import UsageError
from textcraftor.evaluation.picture_sets import PictureSet
from textcraftor.evaluation.rating import SKIP, Rating, Ratings
from textcraftor.evaluation.ratings import read, sets_of
from textcraftor.training.preference_fit import TIE, Choices

LEAST_CHOICES = 10  # that are no ties


class Picture(NamedTuple):
    """A picture that was rated."""

    model: str
    prompt: str
    seed: int


Choice = tuple[Picture, Picture, float]  # and the outcome for the first: 1 won, 0 lost, .5 tied


@dataclass(frozen=True)
class Preferences:
    """Choices between pictures.

    Args:
        sets: the pictures of each model; their rows are numbered in this order, in each set by prompt and seed.
    """

    sets: Mapping[str, PictureSet]
    choices: Choices

    @property
    def pictures(self) -> list[tuple[str, Path]]:
        """The prompt and the file of each row."""
        return [(prompt, file) for own in self.sets.values() for (prompt, _), file in sorted(own.files.items())]


def read_preferences(config: DictConfig) -> Preferences:
    """What the configuration's raters chose among its models' pictures.

    Raises:
        UsageError: no file, a question or rater without answers, pictures of a model that are not given or are others
            than those that were rated, too few choices, or choices on one prompt alone.
    """
    ratings = read(config.ratings, "ratings")
    answers = answers_of(ratings, question_of(ratings, config.question), config.raters)
    sets = sets_of(ratings, config.models)
    for model in sorted({model for own in answers for one in own for model in one.models} - sets.keys()):
        raise UsageError(f"models.{model} is needed: give the folder of the pictures that were rated as {model}")
    chosen = [choice for own in answers for choice in choices_of(own)]
    if sum(outcome != TIE for _, _, outcome in chosen) < LEAST_CHOICES:
        raise UsageError(
            f"{len(chosen)} choices, ties among them, are too few to learn from: rate at least {LEAST_CHOICES} pairs "
            "with a preference; grades count where one person grades two pictures of a prompt differently"
        )
    return Preferences(sets, numbered(chosen, sets))


def question_of(ratings: Ratings, question: str | None) -> str:
    """The question to learn from: the given one, or the only one that has answers."""
    answered = [key for key in ratings.questions if ratings.standing(key)]
    if question is None and len(answered) > 1:
        raise UsageError(f"question is needed: the ratings answer {', '.join(answered)}: choose one by question=")
    if question is not None and question not in answered:
        raise UsageError(f"question={question} has no answers; those that have some: {', '.join(answered)}")
    return question or answered[0]


def answers_of(ratings: Ratings, question: str, raters: Sequence[str] | None) -> list[list[Rating]]:
    """Each rater's answers that were neither taken back nor skipped."""
    standing = ratings.standing(question)
    if strange := next((rater for rater in raters or () if rater not in standing), None):
        raise UsageError(f"raters={strange} did not answer {question}; {', '.join(standing)} did")
    chosen = standing if raters is None else raters
    return [[one for one in standing[rater].values() if one.answer != SKIP] for rater in chosen]


def choices_of(answers: Iterable[Rating]) -> Iterator[Choice]:
    """One rater's choices: answers about pairs, and each two grades of pictures of one prompt."""
    graded: dict[str, list[tuple[Picture, float]]] = {}
    for one in answers:
        pictures = [Picture(model, one.prompt, one.seed) for model in one.unit.models]
        if len(pictures) == 2:
            yield pictures[0], pictures[1], one.score
        else:
            graded.setdefault(one.prompt, []).append((pictures[0], one.score))
    for own in graded.values():
        for (first, grade), (second, other) in itertools.combinations(own, 2):
            yield first, second, (1 + float(np.sign(grade - other))) / 2


def numbered(chosen: Sequence[Choice], sets: Mapping[str, PictureSet]) -> Choices:
    """Choices by the rows of pictures and the numbers of prompts."""
    pictures = [Picture(name, *key) for name, own in sets.items() for key in sorted(own.files)]
    rows = {picture: row for row, picture in enumerate(pictures)}
    if strange := next((one for pair in chosen for one in pair[:2] if one not in rows), None):
        raise UsageError(
            f"models.{strange.model} has no picture of the rated prompt {strange.prompt!r} with the seed "
            f"{strange.seed}: take that line out of the ratings"
        )
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(first.prompt for first, _, _ in chosen))}
    if len(prompts) < 2:
        raise UsageError("all choices are on one prompt, so that none can be held out: rate pictures of several")
    table = [(rows[one], rows[other], prompts[one.prompt], outcome) for one, other, outcome in chosen]
    first, second, prompt, outcomes = np.array(table, float).T
    return Choices(first.astype(int), second.astype(int), outcomes, prompt.astype(int))
