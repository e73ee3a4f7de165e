"""A judge over the pictures of an evaluation: each process asks about its share; the last one sums up the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from omegaconf import DictConfig
from PIL import Image
from tqdm.auto import tqdm

from textcraftor.errors import printable
from textcraftor.evaluation.judging import pairwise
from textcraftor.evaluation.judging.judged import Judged, Picture, ask, figures, judged, table_of
from textcraftor.evaluation.judging.opening import answers_of, judge_of, settings_of
from textcraftor.evaluation.judging.pairwise import BASE, HERE, Pairwise
from textcraftor.evaluation.judging.written import WrittenChoices
from textcraftor.evaluation.picture_sets import PictureSet
from textcraftor.evaluation.rating import MOST_NAME, SCORES, Rating
from textcraftor.evaluation.suite import Store, read_rows_of
from textcraftor.files.reading import read_json, shaped
from textcraftor.files.writing import is_finished, json_line, locked, write_json, write_text
from textcraftor.inference.pictures import to_pil

TABLE = "judge.json"  # of one folder's pictures
QUESTIONS = "questions.json"  # those that a model wrote, in TIFA's layout
VOTES = "ratings.jsonl"  # of pairwise comparison
QUESTION = "follows"  # of textcraftor rate, in the same words, so that people's votes can stand beside
QUESTION_TEXT = "Which follows the prompt better?"
ROW = {"mean": float, "questions": int, "unanswered": float}
SHAPE = {"overall": float, "unanswered": float, "questions": int, "categories": {str: ROW}}
Job = tuple[int, int]


@dataclass
class Judging:
    """The judge of a configuration, and its judgements by folder of pictures."""

    config: DictConfig
    judgements: dict[Path, list[Judged]] = field(default_factory=dict)  # once all pictures of a folder are judged

    @cached_property
    def judge(self) -> Any:
        return judge_of(self.config)

    def ask(self, store: Store, number: int, of: int) -> bool:
        """Ask about every `of`-th picture from `number` on; returns whether all pictures of the folder are judged."""
        processes = PartialState()
        if isinstance(self.judge, Pairwise) or is_finished(store.folder):
            return True
        rows = store.rows()
        mine = [rows[job] for job in store.suite.jobs[number::of] if job in rows]
        with locked(store.folder, str(number)):
            answers = answers_of(self.config, store.folder, number)
            ask(self.judge, [*pictures_of(store, mine)], answers, self.config.batch_size, quiet=number > 0)
        processes.wait_for_everyone()
        return len(rows) == len(store.suite.jobs) and self._is_judged(store)

    def _is_judged(self, store: Store) -> bool:
        rows, answers = store.rows(), answers_of(self.config, store.folder)
        judgements = judged(self.judge, [*pictures_of(store, [rows[job] for job in store.suite.jobs])], answers)
        self.judgements |= {store.folder: judgements} if judgements is not None else {}
        return judgements is not None

    def figures(self, store: Store) -> dict[Job, dict[str, float]]:
        """Each picture's figures; its answers, in the suite's order, and the table are written beside the pictures."""
        if isinstance(self.judge, Pairwise):
            return {}
        judgements = self.judgements[store.folder]
        answers_of(self.config, store.folder).finish([key for one in judgements for key in one.keys])
        if isinstance(self.judge, WrittenChoices):
            write_text(store.folder / QUESTIONS, json.dumps(self.judge.rows(), indent=1, ensure_ascii=False))
        write_json(store.folder / TABLE, self._with_judge(table_of(self.judge, judgements)))
        return dict(zip(store.suite.jobs, figures(self.judge, judgements), strict=True))

    def _with_judge(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """A table with the judge's name and settings, so that tables of two judges are not compared."""
        return {"name": self.judge.name, "settings": settings_of(self.config), **table}

    def summary(self, here: Store, base: Store | None) -> dict[str, Any]:
        """The judge's `name` and its `tables` by category, of `here` and, where it has one, of `base`; for pairwise
        comparison `pairs` instead, see `pairwise.strengths`."""
        if isinstance(self.judge, Pairwise):
            assert base is not None  # without a base it was refused
            return {"name": self.judge.name, "pairs": self._compare(here, base)}
        tables = {"here": read_json(here.folder / TABLE)}
        if base is not None and (base.folder / TABLE).is_file():
            theirs = read_json(base.folder / TABLE)
            same = theirs.get("settings") == tables["here"]["settings"]
            tables |= {"base": shaped(base.folder / TABLE, theirs, SHAPE)} if same else {}
        return {"name": self.judge.name, "tables": tables}

    def _compare(self, here: Store, base: Store) -> dict[str, Any]:
        """Ask about each pair of pictures in both orders; the answers and the votes are written beside `here`."""
        rows, theirs = read_rows_of(here.folder), read_rows_of(base.folder)
        with locked(here.folder, "judge"):
            answers = answers_of(self.config, here.folder)
            sides = [[*pictures_of(store, of)] for store, of in ((base, theirs), (here, rows))]
            pairs = ((one.prompt, one.load(), two.load(), two.place) for one, two in zip(*sides, strict=True))
            progress = tqdm(pairs, total=len(rows), desc=f"judging by {self.judge.name}", unit="pair")
            scores = pairwise.scores(self.judge, progress, answers, self.config.batch_size)
            answers.finish(())
        if len(rows) > 1:
            write_votes(here, base, rows, scores, self.judge.model.name)
        return pairwise.strengths([row["prompt"] for row in rows], scores)


def write_votes(
    here: Store, base: Store, rows: Sequence[Mapping[str, Any]], scores: Sequence[float | None], rater: str
) -> None:
    """The scores of pairs as `textcraftor ratings` reads them, beside those of people: `here` to the left of `base`."""
    sets = {name: PictureSet.read(name, store.folder).fingerprint for name, store in ((BASE, base), (HERE, here))}
    lines = [json_line({"models": sets, "questions": {QUESTION: QUESTION_TEXT}})]
    answers = {score: answer for answer, score in SCORES.items()}
    name = printable(rater[-MOST_NAME:], MOST_NAME)
    for row, score in zip(rows, scores, strict=True):
        if score is not None:
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            models = (HERE, BASE)
            vote = Rating(now, name, QUESTION, row["prompt"], row["seed"], models, answers[score])
            lines.append(json_line(vote.line()))
    write_text(here.folder / VOTES, "".join(lines))


def pictures_of(store: Store, rows: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    """The pictures of rows."""
    for row in rows:
        yield Picture(str(row["picture"]), str(row["prompt"]), partial(_opened, store, row))


def _opened(store: Store, row: Mapping[str, Any]) -> Image.Image:
    return to_pil(store.picture(row))
