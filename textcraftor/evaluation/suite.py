"""Which pictures an evaluation makes, and what of them is on disk already."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from jaxtyping import UInt8
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from textcraftor.data.prompts import read_rows
from textcraftor.errors import UsageError
from textcraftor.evaluation.evaluate import diversity
from textcraftor.inference.pictures import save_png

KEYS = ("prompt_index", "seed", "prompt", "category", "picture")  # of a row; everything else is a measure


@dataclass(frozen=True)
class Suite:
    """Prompts with their categories, and the seeds that each is drawn with."""

    prompts: tuple[str, ...]
    categories: tuple[str, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, config: DictConfig) -> Suite:
        """The suite of a configuration; `prompts.path` takes its place, `limit` cuts each category short."""
        files = config.suite.files if config.prompts.path is None else {"": config.prompts.path}
        column = config.suite.category if config.prompts.path is None else None
        found: dict[str, list[str]] = {}
        for name, path in files.items():
            for row in read_rows(path):
                if column is not None and not row.get(column):
                    raise UsageError(f"suite.category={column} is no column of {path}, or empty in a row")
                found.setdefault(row[column] if column else name, []).append(row["prompt"])
        chosen = [(prompt, category) for category, prompts in found.items() for prompt in prompts[: config.limit]]
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

    def done(self) -> dict[tuple[int, int], dict]:
        """The rows written so far, by prompt number and seed; a line cut short by an interruption is no row."""
        found = {}
        for file in sorted(self.folder.glob("rows.*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    row = json.loads(line)
                    found[row["prompt_index"], row["seed"]] = row
        return found

    def write(self, part: int, jobs: Sequence[tuple[int, int]], measured: Mapping[str, np.ndarray]) -> None:
        """Pictures, and after them their rows, appended to a file of this part's own."""
        (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
        lines = []
        for place, (index, seed) in enumerate(jobs):
            prompt, name = self.suite.prompts[index], f"pictures/{index:05d}_{seed}.png"
            save_png(
                torch.from_numpy(measured["pictures"][place]), self.folder / name, {"prompt": prompt, "seed": seed}
            )
            row: dict[str, object] = {"prompt_index": index, "seed": seed, "prompt": prompt}
            row |= {"category": self.suite.categories[index], "picture": name}
            figures = {name: float(values[place]) for name, values in measured.items() if name != "pictures"}
            row |= {name: value if np.isfinite(value) else None for name, value in figures.items()}
            lines.append("\n" + json.dumps(row, ensure_ascii=False))
        with (self.folder / f"rows.{part}.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def finish(self) -> None:
        """All rows, with the diversity over seeds, as one parquet file in the suite's order."""
        done = self.done()
        rows = [done[job] for job in self.suite.jobs]
        if len(self.suite.seeds) > 1:
            for first in range(0, len(rows), len(self.suite.seeds)):
                group = rows[first : first + len(self.suite.seeds)]
                spread = diversity(torch.stack([self.picture(row) for row in group]))
                for row in group:
                    row["diversity"] = spread
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
        pyarrow.parquet.write_table(table, self.folder / "rows.parquet")
        for file in self.folder.glob("rows.*.jsonl"):
            file.unlink()

    def picture(self, row: Mapping) -> UInt8[Tensor, "3 height width"]:
        with Image.open(self.folder / row["picture"]) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def read_rows_of(folder: Path) -> list[dict]:
    """The rows of a finished evaluation."""
    file = folder / "rows.parquet"
    if not file.exists():
        raise UsageError(f"{folder} holds no rows.parquet: give the folder of a finished evaluation")
    return pyarrow.parquet.read_table(file).to_pylist()


def measures_of(rows: Sequence[Mapping], seeds: int) -> dict[str, np.ndarray]:
    """Each measure as (prompts, seeds), NaN where a picture has none."""
    names = [name for name in rows[0] if name not in KEYS]
    found = {name: np.array([row[name] for row in rows], dtype=float).reshape(-1, seeds) for name in names}
    return {name: values for name, values in found.items() if not np.isnan(values).all()}
