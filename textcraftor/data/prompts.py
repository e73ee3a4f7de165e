"""Prompt files, and which prompts a training step draws."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from textcraftor.assets import is_address, local_file
from textcraftor.errors import UsageError

COLUMNS = ("prompt", "text", "caption")  # the names under which tables keep prompts, in any case


def read_prompts(path: str | Path | None) -> list[str]:
    """The prompts of a file, see `read_rows`."""
    return [row["prompt"] for row in read_rows(path)]


def read_rows(path: str | Path | None) -> list[dict[str, str]]:
    """The rows of a file, each with its `prompt`, empty ones left out: text (one a line), `.tsv` with a header, `.json`
    or `.jsonl`.

    Args:
        path: a local path, `hf://owner/repo/file` or `https://host/file#sha256=...`.

    Raises:
        UsageError: no such file, no column of prompts, or no prompt in it.
    """
    if path is None:
        raise UsageError("prompts.path is needed: give a text file with one prompt a line")
    if not is_address(str(path)) and not Path(path).expanduser().is_file():
        raise UsageError(f"prompts.path={path} does not exist: give a text file with one prompt a line")
    file = local_file(str(path), "prompts.path")
    text = file.read_text(encoding="utf-8")
    found: Iterable[str | dict[str, str]]
    try:
        match file.suffix:
            case ".tsv":
                found = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
            case ".json":
                found = json.loads(text)
            case ".jsonl":
                found = [json.loads(line) for line in text.splitlines() if line.strip()]
            case _:
                found = text.splitlines()
        rows = [_with_prompt(row) for row in found]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UsageError(f"prompts.path={path}: expected rows with one of {', '.join(COLUMNS)}: {error}") from error
    rows = [row for row in rows if row["prompt"]]
    if not rows:
        raise UsageError(f"prompts.path={path} holds no prompt: write one prompt a line")
    return rows


def _with_prompt(row: str | dict[str, str]) -> dict[str, str]:
    """A row whose prompt stands under `prompt`."""
    if isinstance(row, str):
        return {"prompt": row.strip()}
    names = {name.lower(): name for name in row}
    column = next((names[name] for name in COLUMNS if name in names), "prompt")
    return {**row, "prompt": row[column].strip()}


def split_held_out(prompts: Sequence[str], evaluated: int, watched: int) -> tuple[list[str], list[str]]:
    """Of prompts that are not trained on, so many to evaluate with and so many to watch; of too few, neither gets more
    than it asks for, and those watched at most half, unless that leaves more than are to be evaluated."""
    prompts = list(prompts[: evaluated + watched])
    watched = max(1, min(watched, max(len(prompts) - evaluated, len(prompts) // 2)))
    return prompts[:-watched], prompts[-watched:]


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Draws what all samples of a step share; the same in every process."""
    return np.random.default_rng((seed, step, 2))


@dataclass(frozen=True)
class PromptDraw:
    """Draws prompts and noise seeds for a step: a function of seed and step alone, so a resumed run goes on alike.

    Args:
        prompts: all of them; a pass over the list is shuffled anew.
        seed: of the run.
    """

    prompts: list[str]
    seed: int

    def __call__(self, step: int, batch_size: int) -> tuple[list[str], list[int]]:
        """The prompts and noise seeds of one step, `batch_size` each."""
        chosen = []
        for position in range(step * batch_size, (step + 1) * batch_size):
            turn, index = divmod(position, len(self.prompts))
            order = np.random.default_rng((self.seed, turn)).permutation(len(self.prompts))
            chosen.append(self.prompts[order[index]])
        seeds = np.random.default_rng((self.seed, step, 1)).integers(2**40, 2**48, batch_size)
        return chosen, [int(seed) for seed in seeds]

    def rng(self, step: int) -> np.random.Generator:
        """Draws what all samples of a step share; the same in every process."""
        return step_rng(self.seed, step)

    def clean(self, step: int, batch_size: int, rows: Sequence[int]) -> None:
        """Prompts alone come with no picture to start from."""
