"""Reads what a model answered: which of some choices it is, or that it is none."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rapidfuzz import fuzz

from textcraftor.captioning.advice import MOST_ANSWER, short
from textcraftor.evaluation.judging.base import Answer, Question

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(WORDS)}
CLAUSE = re.compile(r"[,.;:\n]")
ALIKE = 85.0  # of 100, from which on an answer in other words is taken for its nearest choice
LEAD = 10.0  # by which the nearest choice must be nearer than the next one


def plain(text: str) -> str:
    """Lower-case words without punctuation, numbers in digits."""
    words = re.findall(r"[\w'-]+", text.lower())
    return " ".join(NUMBERS.get(word, word) for word in words)


def choice_in(text: str, choices: tuple[str, ...]) -> str | None:
    """The one choice that an answer means: all of it or its first clause; the only one named, a longer choice before a
    shorter one within it; the nearest one by letters. None where that is not clear."""
    answer, known = plain(text), {plain(choice): choice for choice in choices}
    for part in (answer, plain(CLAUSE.split(text, maxsplit=1)[0])):
        if part in known:
            return known[part]
    if named := _named_in(answer, [*known]):
        return known[named[0]] if len(named) == 1 and f" not {named[0]} " not in f" {answer} " else None
    near = sorted(((fuzz.ratio(answer, words), words) for words in known), reverse=True)
    clear = near and near[0][0] >= ALIKE and (len(near) == 1 or near[0][0] - near[1][0] >= LEAD)
    return known[near[0][1]] if clear else None


def _named_in(answer: str, choices: list[str]) -> list[str]:
    """Which choices an answer names, the longest first; what a longer one takes is not left for a shorter one."""
    named, rest = [], f" {answer} "
    for words in sorted(choices, key=len, reverse=True):
        if f" {words} " in rest:
            named.append(words)
            rest = rest.replace(f" {words} ", "  ")
    return named


def verdict_in(text: str, choices: tuple[str, ...]) -> str | None:
    """The choice in the last line of an answer that gives its reasons first."""
    lines = [line for line in text.splitlines() if line.strip()]
    return choice_in(lines[-1], choices) if lines else None


def answer_in(
    text: str, question: Question, values: Mapping[str, float] | None = None, reasons: bool = False
) -> Answer:
    """An answer to a question with choices; one that is no choice has a fault and no value.

    Args:
        values: of the choices; None: 1 of the expected one, 0 of all others.
        reasons: the choice stands in the last line. Text up to `</think>` is always ignored.
    """
    reply = text.rpartition("</think>")[2].strip()[:MOST_ANSWER]
    chosen = (verdict_in if reasons else choice_in)(reply, question.choices)
    if chosen is None:
        return Answer(reply, fault=f"none of {', '.join(question.choices)}: {short(reply) or 'nothing'}")
    return Answer(reply, values[chosen] if values else float(plain(chosen) == plain(question.expected)))
