"""The noun chunks of a prompt, for B-VQA."""

from __future__ import annotations

import re
from collections.abc import Callable

from textcraftor.errors import UsageError

MOST_CHUNKS = 8
SPACY = "en_core_web_sm"  # the published choice
# What stands between noun chunks in prompts: commas, prepositions, conjunctions, forms of to be and to have.
BETWEEN = re.compile(
    r"[,.;:!?]|\b(?:next to|on (?:the )?(?:top|bottom|side|left|right) of|in front of|and|or|with|of|on|in|at|to|by|"
    r"from|for|over|under|above|below|behind|beside|between|near|inside|into|against|around|through|that|which|who|is|are|"
    r"was|were|be|been|being|has|have|had)\b",
    re.IGNORECASE,
)
LETTER = re.compile(r"[A-Za-z]")


def simple_chunks(prompt: str) -> list[str]:
    """What stands between prepositions, conjunctions and commas: right for prompts such as `a green bench and a blue
    bowl` of T2I-CompBench; it knows no verbs but to be and to have."""
    parts = [" ".join(part.split()) for part in BETWEEN.split(prompt)]
    return [part for part in parts if LETTER.search(part)] or [prompt]


def spacy_chunks() -> Callable[[str], list[str]]:
    """Those that spaCy's `en_core_web_sm` finds, as published.

    Raises:
        UsageError: spaCy or its model is not installed.
    """
    try:
        import spacy

        reader = spacy.load(SPACY)
    except (ImportError, OSError) as error:
        raise UsageError(
            f"judge.chunks=spacy needs spaCy and its model: pip install spacy && python -m spacy download {SPACY}; or "
            "choose judge.chunks=simple"
        ) from error
    return lambda prompt: [str(chunk) for chunk in reader(prompt).noun_chunks]


CHUNKERS: dict[str, Callable[[], Callable[[str], list[str]]]] = {"simple": lambda: simple_chunks, "spacy": spacy_chunks}
