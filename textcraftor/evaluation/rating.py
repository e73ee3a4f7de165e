"""What people answer about pictures, and the file that keeps it: JSON lines, one an answer, only ever added to.

    {"models": {"base": "<fingerprint>", "tuned": ...}, "questions": {"prefer": "Which do you prefer?"}}
    {"time": ..., "rater": "ann", "question": "prefer", "prompt": ..., "seed": 0, "left": "base", "right": "tuned",
     "answer": "left"}                                                            (in one line; and of a grade:)
    {"time": ..., "rater": "ann", "question": "quality", "prompt": ..., "seed": 0, "model": "base", "answer": 7}

The first line says whose pictures are rated and what is asked; more such lines follow where models or questions are
added. Answers to pairs are left, right, tie or skip, grades whole numbers from 1 to 10, and `undo` takes the rater's
answer about the same pictures back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textcraftor.config.fields import MOST_SEED
from textcraftor.errors import UsageError
from textcraftor.files.reading import MOST_TEXT, check_file, is_writable, json_object, shaped
from textcraftor.files.writing import append, json_line, write_text

FILE = "ratings.jsonl"
LEFT, RIGHT, TIE, SKIP, UNDO = "left", "right", "tie", "skip", "undo"
SCORES = {LEFT: 1.0, TIE: 0.5, RIGHT: 0.0}  # of the picture on the left
GRADES = range(1, 11)
MOST_NAME = 60  # characters of a rater's name, of a model's, and of a question's key
MOST_MODELS = 64
Answer = str | int


@dataclass(frozen=True)
class Unit:
    """What an answer is about: the pictures of a prompt and a seed by two models, or by one to be graded.

    Args:
        models: in alphabetical order.
    """

    prompt: str
    seed: int
    models: tuple[str, ...]


@dataclass(frozen=True)
class Rating:
    """An answer.

    Args:
        time: in UTC, as ISO 8601 with microseconds.
        models: as they were shown, left and right; or the one that was graded.
        answer: left, right, tie, skip, a grade, or undo.
    """

    time: str
    rater: str
    question: str
    prompt: str
    seed: int
    models: tuple[str, ...]
    answer: Answer

    @property
    def unit(self) -> Unit:
        return Unit(self.prompt, self.seed, tuple(sorted(self.models)))

    @property
    def score(self) -> float:
        """Of the unit's first model against its second: 1, 0, or 1/2 for a tie; of a single picture the grade."""
        score = SCORES[self.answer] if isinstance(self.answer, str) else float(self.answer)
        return 1 - score if len(self.models) == 2 and self.models[0] > self.models[1] else score

    def line(self) -> dict[str, Any]:
        """As the file holds it."""
        shown = (
            dict(zip((LEFT, RIGHT), self.models, strict=True)) if len(self.models) == 2 else {"model": self.models[0]}
        )
        head = {"time": self.time, "rater": self.rater, "question": self.question}
        return {**head, "prompt": self.prompt, "seed": self.seed, **shown, "answer": self.answer}


@dataclass
class Ratings:
    """A file of answers.

    Args:
        models: the fingerprint of each model's pictures.
        questions: what is asked, by short keys.
        lines: every answer, also those that were taken back, in order.
    """

    models: dict[str, str] = field(default_factory=dict)
    questions: dict[str, str] = field(default_factory=dict)
    lines: list[Rating] = field(default_factory=list)

    def about(self, place: object, models: Mapping[str, str], questions: Mapping[str, str]) -> bool:
        """Add models and questions; returns whether there were new ones.

        Raises:
            UsageError: other pictures of a model, or another question, by a name that is known already.
        """
        for name, fingerprint in models.items():
            if self.models.get(name, fingerprint) != fingerprint:
                raise UsageError(
                    f"{place} holds ratings of other pictures by the name {name}: give those, or rename it"
                )
        for key, text in questions.items():
            if self.questions.get(key, text) != text:
                raise UsageError(f"{place} asks by the name {key}: {self.questions[key]}: choose another name")
        fresh = bool(models.keys() - self.models.keys() or questions.keys() - self.questions.keys())
        self.models |= models
        self.questions |= questions
        if len(self.models) > MOST_MODELS:
            raise UsageError(f"{place} has {len(self.models)} models; it may have {MOST_MODELS}")
        return fresh

    def standing(self, question: str) -> dict[str, dict[Unit, Rating]]:
        """The answers to a question that were not taken back, by rater and by what they are about, oldest first."""
        kept: dict[str, dict[Unit, Rating]] = {}
        for rating in self.lines:
            if rating.question == question:
                mine = kept.setdefault(rating.rater, {})
                mine.pop(rating.unit, None)
                if rating.answer != UNDO:
                    mine[rating.unit] = rating
        return kept


def rater_of(name: object) -> str:
    """A rater's name, without spaces around it.

    Raises:
        UsageError: it is empty, too long, or has signs that cannot be shown.
    """
    text = " ".join(str(name or "").split())
    if not text:
        raise UsageError("type your name first: it keeps your answers apart from those of others")
    if len(text) > MOST_NAME or not text.isprintable():
        raise UsageError(f"the name {text[:MOST_NAME]!r} must have at most {MOST_NAME} plain characters")
    return text


def read_ratings(file: Path) -> Ratings:
    """The answers of a file; a last line that a kill cut short is none.

    Raises:
        UsageError: a line is broken, with its number.
    """
    ratings = Ratings()
    for number, line in enumerate(_whole_lines(file), 1):
        _take(ratings, f"{file}, line {number}", line)
    if not ratings.models:
        raise UsageError(f"{file} holds no ratings: give a file that textcraftor rate wrote")
    return ratings


def _whole_lines(file: Path) -> list[bytes]:
    """The lines of a file, the last one only if it ends."""
    return check_file(file, MOST_TEXT).read_bytes().split(b"\n")[:-1]


def mend(file: Path) -> None:
    """Take away a last line that was cut short, so that the next one begins anew; needs no room on the disk."""
    content = file.read_bytes()
    os.truncate(file, content.rfind(b"\n") + 1)


def _take(ratings: Ratings, place: str, line: bytes) -> None:
    """Add what a line holds."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{place} is no text in UTF-8: take the line out") from error
    value = json_object(place, text)
    if "models" in value:
        about = shaped(place, value, {"models": {str: str}, "questions": {str: str}})
        names = [*about["models"], *about["questions"]]
        if not all(0 < len(name) <= MOST_NAME and name.isprintable() for name in names):
            raise UsageError(f"{place}: each name must have 1 to {MOST_NAME} plain characters")
        if not all(map(is_writable, about["questions"].values())):
            raise UsageError(f"{place}: a question holds half a sign: write it again")
        ratings.about(place, about["models"], about["questions"])
    else:
        ratings.lines.append(_rating(ratings, place, value))


def _rating(ratings: Ratings, place: str, value: dict[str, Any]) -> Rating:
    """The answer that a line holds."""
    names = (LEFT, RIGHT) if LEFT in value else ("model",)
    shape = {"time": str, "rater": str, "question": str, "prompt": str, "seed": int, **dict.fromkeys(names, str)}
    row = shaped(place, value, shape | {"answer": int if isinstance(value.get("answer"), int) else str})
    models = tuple(row.pop(name) for name in names)
    rating = Rating(models=models, **row)
    if broken := next(_broken(ratings, rating), None):
        raise UsageError(f"{place}: {broken}: take the line out")
    return rating


def _broken(ratings: Ratings, rating: Rating) -> Iterator[str]:
    """What an answer of a file cannot be."""
    if rating.question not in ratings.questions:
        yield f"question={rating.question} is none of {', '.join(ratings.questions)}"
    if not {*rating.models} <= ratings.models.keys() or len({*rating.models}) < len(rating.models):
        yield f"{' and '.join(rating.models)} must be of {', '.join(ratings.models)}, two different ones for a pair"
    if rating.answer not in answers(rating.models):
        yield f"answer={rating.answer} must be one of {', '.join(map(str, answers(rating.models)))}"
    if not 0 <= rating.seed <= MOST_SEED:
        yield f"seed={rating.seed} must lie between 0 and {MOST_SEED}"
    if not (0 < len(rating.rater) <= MOST_NAME and rating.rater.isprintable()):
        yield f"rater must have 1 to {MOST_NAME} plain characters"
    if not (is_writable(rating.time) and is_writable(rating.prompt)):
        yield "a text holds half a sign"


def answers(models: Sequence[str]) -> tuple[Answer, ...]:
    """What can be answered about one or two models' pictures."""
    return (*SCORES, SKIP, UNDO) if len(models) == 2 else (*GRADES, SKIP, UNDO)


def merged(files: Mapping[str, Ratings]) -> Ratings:
    """The answers of several files; a line that several hold, as a file and its copy do, counts once.

    Raises:
        UsageError: two files hold ratings of other pictures, or other questions, by the same name.
    """
    whole = Ratings()
    for place, ratings in files.items():
        whole.about(place, ratings.models, ratings.questions)
    lines = dict.fromkeys(line for ratings in files.values() for line in ratings.lines)
    whole.lines = sorted(lines, key=lambda one: one.time) if len(files) > 1 else [*lines]
    return whole


def so_far(file: Path) -> Ratings:
    """The answers of a file, none where there is no file yet."""
    return read_ratings(file) if file.exists() else Ratings()


def begin(file: Path, models: Mapping[str, str], questions: Mapping[str, str]) -> Ratings:
    """The answers so far, of a file that more are added to.

    Raises:
        UsageError: it holds ratings of other pictures, other questions by the same names, or a broken line.
    """
    ratings, head = so_far(file), json_line({"models": dict(models), "questions": dict(questions)})
    is_new = ratings.about(file, models, questions)
    if not file.exists():
        write_text(file, head)
        return ratings
    mend(file)
    if is_new:
        append(file, head)
    return ratings


def add(file: Path, ratings: Ratings, rating: Rating) -> None:
    """Keep an answer; it is on the disk when this returns, and nowhere where this fails."""
    try:
        append(file, json_line(rating.line()))
    except OSError:
        mend(file)
        raise
    ratings.lines.append(rating)
