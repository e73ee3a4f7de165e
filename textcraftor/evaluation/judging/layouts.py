"""The published files of questions: TIFA's JSON, DPG-Bench's CSV and GenEval's JSON lines, each by prompt."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from textcraftor.assets import local_file
from textcraftor.data.prompt_files import unpacked
from textcraftor.errors import UsageError
from textcraftor.evaluation.judging.base import YES_NO, Question
from textcraftor.files.reading import parsed, shaped
from textcraftor.files.texts import cells_of, lines_of, text_of

KEY = "judge.questions"
POSITIONS = ("left of", "right of", "above", "below")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
DPG_COLUMNS = ("text", "proposition_id", "dependency", "category_broad", "question_natural_language")
ByPrompt = dict[str, list[Question]]


def read_questions(path: str | None, read: Callable[[bytes, str], ByPrompt], what: str) -> ByPrompt:
    """The questions of a file, by prompt.

    Args:
        path: a local file or an address; perhaps packed by gzip.
        read: of its layout: `tifa`, `dpg` or `geneval`.
        what: the published file, for the error message.

    Raises:
        UsageError: no file, or one that lacks a field, with the place.
    """
    if path is None:
        raise UsageError(f"{KEY} is needed: give {what}")
    file = Path(local_file(path, KEY)).resolve()
    questions = read(unpacked(file, f"{KEY}={path}")[0], f"{KEY}={path}")
    if not questions:
        raise UsageError(f"{KEY}={path} holds no question: give {what}")
    return questions


def tifa(content: bytes, place: str) -> ByPrompt:
    """TIFA v1.0: a JSON list of {caption, question, choices, answer, element_type} (Hu et al., arXiv 2303.11897)."""
    rows = parsed(place, text_of(content, place), "JSON", json.loads)
    by_prompt: ByPrompt = {}
    shape = {"caption": str, "question": str, "choices": [str], "answer": str, "element_type": str}
    for number, row in enumerate(shaped(place, rows, [dict]), 1):
        at = f"{place}, question {number}"
        one = fields(at, row, shape)
        if one["answer"] not in one["choices"]:
            raise UsageError(f"{at}: the answer {one['answer']} is none of its choices: correct the file")
        question = Question(one["question"], one["answer"], tuple(one["choices"]), one["element_type"])
        by_prompt.setdefault(one["caption"].strip(), []).append(question)
    return {prompt: list(dict.fromkeys(questions)) for prompt, questions in by_prompt.items()}


def dpg(content: bytes, place: str) -> ByPrompt:
    """DPG-Bench (Hu et al., arXiv 2403.05135): a row a question, {text, proposition_id, dependency, category_broad,
    question_natural_language}; a question with dependencies counts where those of these ids are answered yes."""
    by_prompt: dict[str, dict[int, Mapping[str, str]]] = {}
    rows = list(cells_of(lines_of(io.BytesIO(content), place), ".csv", DPG_COLUMNS, place))
    for number, cells in rows:
        row = fields(f"{place}, row {number}", cells, dict.fromkeys(DPG_COLUMNS, str))
        at = f"{place}, row {number}"
        by_prompt.setdefault(row["text"].strip(), {})[_whole(at, "proposition_id", row["proposition_id"])] = row | {
            "at": at
        }
    return {prompt: [*_dependent(own)] for prompt, own in by_prompt.items()}


def _dependent(rows: Mapping[int, Mapping[str, str]]) -> Iterator[Question]:
    """The questions about one prompt, by the ids of the file; 0 as a dependency is none."""
    places = {number: place for place, number in enumerate(rows)}
    for row in rows.values():
        ids = [_whole(row["at"], "dependency", one) for one in row["dependency"].split(",")]
        if strange := next((one for one in ids if one and one not in places), None):
            raise UsageError(f"{row['at']}: dependency={strange} is no question of this prompt: correct the file")
        after = tuple(places[one] for one in ids if one)
        yield Question(row["question_natural_language"], "yes", YES_NO, row["category_broad"].strip(), after)


def geneval(content: bytes, place: str) -> ByPrompt:
    """GenEval (Ghosh et al., arXiv 2310.11513): a JSON object a line, {tag, include, prompt, exclude}; each clause is
    {class, count} and, of those in include, perhaps `color` and `position`, [relation, number of an earlier clause].
    A prompt's one question is its object."""
    by_prompt: ByPrompt = {}
    for number, line in enumerate(lines_of(io.BytesIO(content), place), 1):
        if line.strip():
            at = f"{place}, line {number}"
            row = parsed(at, line, "JSON", json.loads)
            entry = fields(at, row, {"tag": str, "prompt": str, "include": [dict], "exclude?": [dict]})
            _check_clauses(at, entry["include"], entry.get("exclude", []))
            text = json.dumps({key: row[key] for key in ("tag", "include", "exclude") if key in row})
            by_prompt[entry["prompt"].strip()] = [Question(text, category=entry["tag"])]
    return by_prompt


def _check_clauses(at: str, include: list[dict], exclude: list[dict]) -> None:
    """Refuse a clause that GenEval's rules cannot judge."""
    for kind, clauses in (("include", include), ("exclude", exclude)):
        for place, clause in enumerate(clauses):
            where = f"{at}: {kind}.{place}"
            one = fields(where, clause, {"class": str, "count": int, "color?": str, "position?": list})
            if one["count"] < 1:
                raise UsageError(f"{where}: count={one['count']} must be at least 1")
            if one.get("color", COLORS[0]) not in COLORS:
                raise UsageError(f"{where}: color={one['color']} must be one of {', '.join(COLORS)}")
            if "position" in one and not _is_position(one["position"], place):
                raise UsageError(
                    f"{where}: position={json.dumps(one['position'])[:60]} must be one of {', '.join(POSITIONS)}, and "
                    "the number of an earlier clause"
                )


def _is_position(position: list[Any], place: int) -> bool:
    match position:
        case [str(relation), int(target)]:
            return relation in POSITIONS and 0 <= target < place
    return False


def fields(at: str, row: Any, shape: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row, of the types that are wanted, see `files.reading.shaped`.

    Raises:
        UsageError: the place, the field, and what the layout wants.
    """
    needed = [name.removesuffix("?") for name in shape if not name.endswith("?")]
    if isinstance(row, dict) and (missing := next((name for name in needed if name not in row), None)):
        there = ", ".join(map(str, row)) or "none"
        raise UsageError(
            f"{at} lacks the field {missing}: this layout has {', '.join(needed)}, and the file has {there}"
        )
    return shaped(at, row, shape)


def _whole(at: str, name: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise UsageError(f"{at}: {name}={text} must be a whole number from 0 on")
    return int(text)
