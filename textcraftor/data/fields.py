"""What the fields of a captioned picture say, whoever wrote them."""

from __future__ import annotations

import ast
import io
import re
import reprlib
import tokenize
import warnings
from collections.abc import Mapping
from typing import Any

from textcraftor.data.prompts import COLUMNS
from textcraftor.errors import UsageError
from textcraftor.files.reading import is_writable, parse_json

CAPTIONS = (*COLUMNS, "txt")  # the columns of ground-truth captions; also in the plural and numbered
CAPTION = re.compile(rf"({'|'.join(CAPTIONS)})s?[ _.-]?(\d*)")


def is_caption(name: str) -> bool:
    """Whether a column, its name in lower case, holds captions."""
    return CAPTION.fullmatch(name) is not None


def captions_of(at: str, fields: Mapping[str, Any]) -> list[str]:
    """The different captions of a row, not empty, in the order of `CAPTIONS` and of their numbers.

    Args:
        at: where the row stands, for people.

    Raises:
        UsageError: one is neither text nor a list of texts.
    """
    ordered = sorted(
        (CAPTIONS.index(match[1]), int(match[2] or 0), name) for name in fields if (match := CAPTION.fullmatch(name))
    )
    return list(dict.fromkeys(text for _, _, name in ordered for text in texts_of(at, name, fields[name])))


def texts_of(at: str, name: str, value: Any) -> list[str]:
    """The texts of a field, not empty: of a text, a list of texts, or a text that shows such a list, as tables do."""
    parts = _listed(value) if isinstance(value, str) else value if isinstance(value, list) else [value]
    for part in parts:
        if part is not None and not isinstance(part, str):
            raise UsageError(f"{at}: {name}={reprlib.repr(value)} must be text or a list of texts")
        if part and not is_writable(part):
            raise UsageError(f"{at}: {name} holds half a sign (a lone surrogate): write it again")
    return [part.strip() for part in parts if part and part.strip()]


def _listed(text: str) -> list[Any]:
    if not (text.startswith("[") and text.endswith("]")):
        return [text]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, on backslashes
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return [text]
    if not value or not all(isinstance(one, str) for one in value):
        return [text]
    # numpy's arrays have no commas between their texts, which Python would join.
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]


def synthetic_of(at: str, value: Any) -> list[tuple[str, str]]:
    """(kind, caption) of a row's synthetic captions that are not empty."""
    if isinstance(value, str):
        value = parse_json(f"{at}: synthetic", value) if value.strip() else None
    rows = value if isinstance(value, list) else [] if value is None else [value]
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
            raise UsageError(f'{at}: synthetic={reprlib.repr(value)} must be a list of {{"kind": ..., "text": ...}}')
    return [(row["kind"], text) for row in rows for text in texts_of(at, "synthetic", row.get("text"))]
