"""Which pictures an evaluation makes, and what of them is on disk already."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from jaxtyping import UInt8
from omegaconf import DictConfig
from torch import Tensor
from tqdm.auto import tqdm

from textcraftor.data.prompt_files import Say, given_prompts, is_given, read_rows
from textcraftor.errors import UsageError, one_line
from textcraftor.evaluation.evaluate import diversity
from textcraftor.files.pictures import to_rgb
from textcraftor.files.reading import check_confined, check_file, check_plain, open_picture, read_json_lines, shaped
from textcraftor.files.writing import append, finish, replacing
from textcraftor.inference.generate import batches
from textcraftor.inference.pictures import save_png

ROWS, PICTURES = "rows.parquet", "pictures"
MOST_ROWS, MOST_COLUMNS = 10_000_000, 1000
KEYS = ("prompt_index", "seed", "prompt", "category", "picture")  # of a row; everything else is a measure


@dataclass(frozen=True)
class Suite:
    """Prompts with their categories, and the seeds that each is drawn with."""

    prompts: tuple[str, ...]
    categories: tuple[str, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, config: DictConfig, say: Say | None = None) -> Suite:
        """The suite of a configuration; `prompts` replaces its prompts, `limit` shortens each category."""
        by_category: dict[str, list[str]] = {}
        if is_given(config.prompts):
            by_category[""] = given_prompts(config.prompts, say)
        column = config.suite.category
        for name, path in config.suite.files.items() if not by_category else ():
            for row in read_rows(path, config.prompts.column, "suite.files", say):
                if column is not None and not row.get(column):
                    raise UsageError(f"suite.category={column} is no column of {path}, or empty in a row")
                by_category.setdefault(str(row[column]) if column else name, []).append(row["prompt"])
        chosen = [(prompt, category) for category, prompts in by_category.items() for prompt in prompts[: config.limit]]
        prompts, categories = zip(*chosen, strict=True)
        return cls(prompts, categories, tuple(config.seeds))

    @property
    def jobs(self) -> list[tuple[int, int]]:
        """Every picture by the prompt's number and the seed."""
        return [(index, seed) for index in range(len(self.prompts)) for seed in self.seeds]


@dataclass(frozen=True)
class Store:
    """The folder that pictures and their figures go to, as they are made; several processes may write to it."""

    folder: Path
    suite: Suite

    def rows(self) -> dict[tuple[int, int], dict]:
        """The rows written so far, by prompt number and seed."""
        rows, wanted = {}, set(self.suite.jobs)
        for file in sorted(self.folder.glob("rows.*.jsonl")):
            for row in read_json_lines(file):
                key = row.get("prompt_index"), row.get("seed")
                if key in wanted:
                    rows[key] = row
        return rows

    def done(self) -> dict[tuple[int, int], dict]:
        """Those of them whose pictures are whole; each is opened to know that."""
        return {key: row for key, row in self.rows().items() if self._has_picture(row)}

    def waiting(self, jobs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Of some jobs, by the prompt's number and the seed, those whose pictures are not there yet."""
        done = self.done()
        return [job for job in jobs if job not in done]

    def fill(
        self,
        waiting: Sequence[tuple[int, int]],
        part: int,
        batch_size: int,
        measured: Callable[[Sequence[tuple[int, int]]], Mapping[str, np.ndarray]],
    ) -> None:
        """Make pictures.

        Args:
            waiting: the jobs, see `waiting`.
            part: names the file that this process appends its rows to.
            measured: makes some of them and measures them, see `evaluate.measure`.
        """
        progress = tqdm(total=len(waiting), desc=self.folder.name, unit="picture", disable=part > 0)
        for batch in batches(waiting, batch_size):
            self.write(part, batch, measured(batch))
            progress.update(len(batch))
        progress.close()

    def write(self, part: int, jobs: Sequence[tuple[int, int]], measured: Mapping[str, np.ndarray]) -> None:
        """Pictures, and after them their rows, appended to a file of this part's own."""
        lines = []
        for place, (index, seed) in enumerate(jobs):
            prompt, name = self.suite.prompts[index], f"{PICTURES}/{index:05d}_{seed}.png"
            save_png(
                torch.from_numpy(measured["pictures"][place]), self.folder / name, {"prompt": prompt, "seed": seed}
            )
            row: dict[str, object] = {"prompt_index": index, "seed": seed, "prompt": prompt}
            row |= {"category": self.suite.categories[index], "picture": name}
            figures = {name: float(values[place]) for name, values in measured.items() if name != "pictures"}
            row |= finite(figures)
            lines.append("\n" + json.dumps(row, ensure_ascii=False))
        append(self.folder / f"rows.{part}.jsonl", "".join(lines))

    def finish(self, figures: Mapping[tuple[int, int], Mapping[str, float]] | None = None) -> None:
        """All rows, with the diversity over seeds, as one parquet file in the suite's order.

        Args:
            figures: more of each picture, as a judge's; NaN where one does not apply.
        """
        written = self.rows()
        rows = [{**written[job], **finite((figures or {}).get(job, {}))} for job in self.suite.jobs]
        if len(self.suite.seeds) > 1:
            for first in range(0, len(rows), len(self.suite.seeds)):
                group = rows[first : first + len(self.suite.seeds)]
                spread = diversity(torch.stack([self.picture(row) for row in group]))
                for row in group:
                    row["diversity"] = spread
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: [row.get(name) for row in rows] for name in names}
        table = pyarrow.table({**columns, "seed": pyarrow.array(columns["seed"], pyarrow.uint64())})
        with replacing(self.folder / ROWS) as partial:
            pyarrow.parquet.write_table(table, partial)

    def close(self) -> None:
        """Mark the folder as finished; the rows of its parts, from which its file can be made again, are needed no
        more."""
        finish(self.folder, "evaluate")
        for file in self.folder.glob("rows.*.jsonl"):
            file.unlink()

    def picture(self, row: Mapping) -> UInt8[Tensor, "3 height width"]:
        with open_picture(self._picture_file(row)) as picture:
            return torch.from_numpy(np.array(to_rgb(picture))).permute(2, 0, 1)

    def _picture_file(self, row: Mapping) -> Path:
        return self.folder / PICTURES / Path(str(row.get("picture"))).name

    def _has_picture(self, row: Mapping) -> bool:
        try:
            with open_picture(self._picture_file(row)) as picture:
                picture.load()
        except (UsageError, OSError):
            return False
        return True


def finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures as a row holds them: null where one does not apply."""
    return {name: value if np.isfinite(value) else None for name, value in figures.items()}


def read_rows_of(folder: Path) -> list[dict]:
    """The rows of a finished evaluation."""
    file = folder / ROWS
    if not file.exists():
        raise UsageError(f"{folder} holds no {ROWS}: give the folder of a finished evaluation")
    check_confined(folder)
    try:
        with pyarrow.parquet.ParquetFile(check_file(file)) as opened:
            if opened.metadata.num_rows > MOST_ROWS or opened.metadata.num_columns > MOST_COLUMNS:
                raise UsageError(f"{file} has {opened.metadata.num_rows:,} rows: give the folder of an evaluation")
            rows = opened.read().to_pylist()
        check_plain(rows)
    except UsageError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{file} is damaged ({one_line(error)}): run the evaluation again") from error
    measures = [name for name in rows[0] if name not in KEYS] if rows else []
    if not rows or not all(isinstance(row.get("seed"), int) and isinstance(row.get("prompt"), str) for row in rows):
        raise UsageError(f"{file} holds no rows with prompt and seed: give the folder of a finished evaluation")
    for row in rows:
        shaped(file, {name: row[name] for name in measures}, {str: float})
    return rows


def measures_of(rows: Sequence[Mapping], seeds: int) -> dict[str, np.ndarray]:
    """Each measure as (prompts, seeds), NaN where a picture has none."""
    names = [name for name in rows[0] if name not in KEYS]
    measures = {name: np.array([row[name] for row in rows], dtype=float).reshape(-1, seeds) for name in names}
    return {name: values for name, values in measures.items() if not np.isnan(values).all()}
