"""Lets a judge judge a folder's pictures: asks what is not known yet, then figures a picture and tables by category."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from textcraftor.evaluation.judging.answers import Answers
from textcraftor.evaluation.judging.base import Asked, Judge, Question, content_of, mean_of, share_unanswered
from textcraftor.inference.generate import batches


@dataclass(frozen=True)
class Picture:
    """A picture that is to be judged.

    Args:
        place: its file, for people.
        prompt: that it was made from.
        load: opens it.
    """

    place: str
    prompt: str
    load: Callable[[], Image.Image]


@dataclass(frozen=True)
class Judged:
    """What a judge was asked about a picture, the value of each answer, and the answers' keys."""

    questions: Sequence[Question]
    values: Sequence[float | None]
    keys: Sequence[str]


def asked_about(judge: Judge, picture: Picture) -> list[Asked]:
    """The questions about a picture."""
    questions = judge.questions(picture.prompt)
    if not questions:
        return []
    shown = picture.load()
    content = content_of(shown)
    return [Asked(shown, content, picture.prompt, one, picture.place) for one in questions]


def ask(judge: Judge, pictures: Sequence[Picture], answers: Answers, batch_size: int, quiet: bool = False) -> None:
    """Ask everything about these pictures that is not answered yet.

    Args:
        batch_size: pictures at a time; answers are kept after each batch.
        quiet: show no progress.
    """
    progress = tqdm(total=len(pictures), desc=f"judging by {judge.name}", unit="picture", disable=quiet)
    for batch in batches(pictures, batch_size):
        judge.prepare([picture.prompt for picture in batch], answers.of)
        asked = [one for picture in batch for one in asked_about(judge, picture)]
        if asked:
            answers.of(asked, judge.answers)
        progress.update(len(batch))
    progress.close()


def judged(judge: Judge, pictures: Sequence[Picture], answers: Answers) -> list[Judged] | None:
    """The judgement of each picture; None if an answer is still missing."""
    judge.prepare([picture.prompt for picture in pictures], answers.of)
    judgements = []
    for picture in pictures:
        asked = asked_about(judge, picture)
        keys = [answers.key(one) for one in asked]
        if not all(key in answers.known for key in keys):
            return None
        judgements.append(Judged([one.question for one in asked], [answers.value(key) for key in keys], keys))
    return judgements


def figures(judge: Judge, judgements: Sequence[Judged]) -> list[dict[str, float]]:
    """Each picture's figures, as judge/<name>."""
    rows = (judge.figures(one.questions, one.values) for one in judgements)
    return [{f"judge/{name}": value for name, value in row.items()} for row in rows]


def table_of(judge: Judge, judgements: Sequence[Judged]) -> dict[str, Any]:
    """The summary of all pictures.

    Returns:
        `overall`, the judge's figure; `unanswered`, a share, of `questions`, a number; and `categories`, each
        {mean, questions, unanswered} over its questions, whatever picture they are about.
    """
    by_category: dict[str, list[float | None]] = {}
    for category, value in _values(judgements):
        by_category.setdefault(category, []).append(value)
    whole = [value for values in by_category.values() for value in values]
    categories = {name: _row(values) for name, values in by_category.items() if name}
    scores = [judge.figures(one.questions, one.values).get(judge.name, math.nan) for one in judgements]
    parts = [one["mean"] for one in categories.values()] if judge.by_task else scores
    overall = {"overall": mean_of(parts), "unanswered": share_unanswered(whole), "questions": len(whole)}
    without = {"pictures_without_questions": n} if (n := sum(not one.questions for one in judgements)) else {}
    return {**overall, **without, "categories": categories}


def _values(judgements: Sequence[Judged]) -> Iterator[tuple[str, float | None]]:
    for one in judgements:
        for question, value in zip(one.questions, one.values, strict=True):
            yield question.category, value


def _row(values: Sequence[float | None]) -> dict[str, float]:
    return {"mean": mean_of(values), "questions": len(values), "unanswered": share_unanswered(values)}


def table_cells(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """What a judge says, as heads and rows: a row a category, or the counts of a pairwise comparison.

    Args:
        summary: `name`, and `tables` by the model's name, see `table_of`, or `pairs`, see `pairwise.strengths`.
    """
    judge = f"judge: {summary['name']}"
    if "pairs" in summary:
        counts = ["wins", "ties", "losses", "unanswered"]
        cells = [*(str(summary["pairs"][count]) for count in counts), _figure(summary["pairs"]["share"], ".4f")]
        return [judge, *counts, "share, ties half"], [["here against base", *cells]]
    tables = summary["tables"].values()
    heads = [f"{model}, {what}" for model in summary["tables"] for what in ("mean", "unanswered")]
    names = dict.fromkeys(name for table in tables for name in table["categories"])
    rows = [[name, *_cells([table["categories"].get(name, {}) for table in tables])] for name in names]
    whole = _cells([{**table, "mean": table["overall"]} for table in tables])
    return [judge, "questions", *heads], [["overall", *whole], *rows]


def table_text(summary: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    heads, rows = table_cells(summary)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The number of questions, and of each model the mean and the share that was not answered."""
    cells = [str(rows[0].get("questions", 0))]
    for row in rows:
        cells += [_figure(row.get("mean"), ".4f"), _figure(row.get("unanswered"), ".1%")]
    return cells


def _figure(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)
