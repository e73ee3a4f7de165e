"""The answers of a judge in a folder: JSON lines for people to read, from which nothing is asked twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textcraftor.errors import UsageError
from textcraftor.evaluation.judging.base import Answer, Ask, Asked, key_of
from textcraftor.files.reading import MB, read_json_lines
from textcraftor.files.writing import append, json_line, write_text

FILE = "answers.jsonl"
MOST_BYTES = 4 * 1024 * MB  # DPG-Bench's 60,000 answers, each with its long prompt, take 60 MB


@dataclass
class Answers:
    """What was answered so far, by picture, question and settings.

    Args:
        folder: where `answers.jsonl` goes.
        settings: what answers depend on beside picture and question, see `opening.settings_of`.
        part: names the file that this process adds to.
        reuse: files or folders with answers of earlier runs, which are taken over.
    """

    folder: Path
    settings: str
    part: int = 0
    reuse: Sequence[Path] = ()
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for file in self.reuse:
            self.known.update({row["key"]: row for row in _rows(file)})
        for file in sorted(self.folder.glob("answers*.jsonl")):
            here = {row["key"]: row for row in _rows(file)}
            self.known.update(here)
            self.own.update(here)

    def of(self, asked: Sequence[Asked], ask: Ask) -> list[Answer]:
        """The answer to each question; asks for the missing ones and keeps them."""
        keys = [key_of(one, self.settings) for one in asked]
        waiting = {key: one for key, one in zip(keys, asked, strict=True) if key not in self.known}
        if waiting:
            answers = ask([*waiting.values()])
            lines = {key: _line(key, one, answer) for (key, one), answer in zip(waiting.items(), answers, strict=True)}
            append(self.folder / f"answers.{self.part}.jsonl", "".join("\n" + json_line(row) for row in lines.values()))
            self.known.update(lines)
            self.own.update(lines)
        return [_answer(self.known[key]) for key in keys]

    def key(self, asked: Asked) -> str:
        """What an answer stands under, see `base.key_of`."""
        return key_of(asked, self.settings)

    def value(self, key: str) -> float | None:
        """Of an answer that is known."""
        return self.known[key]["value"]

    def finish(self, keys: Iterable[str]) -> None:
        """One file of the answers of these keys, in their order, and behind them of what else was asked here, as for
        questions that a model wrote; the parts, from which it can be made again, go."""
        ordered = dict.fromkeys(keys)
        rows = [self.known[key] for key in [*ordered, *sorted(self.own - ordered.keys())]]
        write_text(self.folder / FILE, "".join(map(json_line, rows)))
        for file in self.folder.glob("answers.*.jsonl"):
            file.unlink()


def _line(key: str, asked: Asked, answer: Answer) -> dict[str, Any]:
    """An answer as the file holds it."""
    about = {"picture": asked.place, "prompt": asked.prompt}
    about |= {"category": asked.question.category} if asked.question.category else {}
    texts = {"question": asked.question.text, "expected": asked.question.expected, "answer": answer.text}
    fault = {"fault": answer.fault} if answer.fault else {}
    return {**about, **texts, "value": answer.value, **fault, "key": key}


def _answer(row: Mapping[str, Any]) -> Answer:
    return Answer(row["answer"], row["value"], row.get("fault", ""))


def _rows(place: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of answers, or of that in a folder."""
    file = place / FILE if place.is_dir() else place
    if not file.is_file():
        raise UsageError(f"answers={place} holds no answers of a judge: give an {FILE}, or the folder of one")
    for row in read_json_lines(file, MOST_BYTES):
        value = row.get("value")
        is_value = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        if isinstance(row.get("key"), str) and isinstance(row.get("answer"), str) and is_value:
            yield row | {"fault": str(row.get("fault", ""))}
