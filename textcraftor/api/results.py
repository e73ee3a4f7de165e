"""What commands give back to Python: the folder that they wrote, with what is in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from PIL import Image
from transformers import PreTrainedModel

from textcraftor.api.calling import load
from textcraftor.files.reading import open_picture, read_json, read_json_lines, read_text
from textcraftor.inference.mix import Mix
from textcraftor.models.run_record import RunRecord
from textcraftor.models.saving import plain_encoder
from textcraftor.models.tuned import load_text_encoders


@dataclass(frozen=True)
class Folder(os.PathLike):
    """The folder that a command wrote; a path for whatever takes one."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str | os.PathLike) -> Path:
        return self.path / name


@dataclass(frozen=True)
class Measured(Folder):
    """A folder with figures."""

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The figures of `summary.json`."""
        return read_json(self.path / "summary.json")


@dataclass(frozen=True)
class Reported(Measured):
    """A folder with figures and a report."""

    @property
    def report(self) -> Path:
        """The page that shows everything."""
        return self.path / "report.html"


@dataclass(frozen=True)
class Run(Reported):
    """A finished run: what was tuned, on what, with which figures."""

    @property
    def base(self) -> str:
        """The folder, file or hub id of the model that was tuned; empty for a pipeline that was made of parts."""
        record = RunRecord.read(self.path).base
        return record.path if record else ""

    def mix(self, weight: float = 1.0, **options: Any) -> Mix:
        """This run's text encoder with so much weight, the original one with the rest.

        Args:
            options: of `Mix`, as `last` and `denoiser`.
        """
        return Mix({"tuned": self.path}, {"tuned": weight}, **options)

    def text_encoder(self, part: str = "text_encoder") -> PreTrainedModel:
        """The tuned text encoder, adapters merged into its weights, on the CPU in float32; its base model is loaded.

        Args:
            part: or `text_encoder_2`, `text_encoder_3`, where the model has them.

        Raises:
            UsageError: the run tuned no text encoder, or the model has no such part.
        """
        model = load(tuned={"tuned": self.path}, device="cpu")
        load_text_encoders(model, self.path, "tuned")
        return plain_encoder(model, "tuned", part)


@dataclass(frozen=True)
class Picture:
    """One picture of `generate`, and what made it.

    Args:
        weights: of the mix, where `grid` varied them.
    """

    file: Path
    prompt: str
    seed: int
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def image(self) -> Image.Image:
        """Its pixels, read from the file."""
        return open_picture(self.file)

    def _repr_png_(self) -> bytes:
        return self.file.read_bytes()  # notebooks show it


@dataclass(frozen=True)
class Pictures(Folder, Sequence):
    """The pictures of `generate`, prompt by prompt and seed by seed."""

    @cached_property
    def _pictures(self) -> list[Picture]:
        rows, own = read_json_lines(self.path / "metadata.jsonl"), ("file_name", "caption", "seed")
        return [
            Picture(
                self.path / row["file_name"],
                row["caption"],
                row["seed"],
                {k: v for k, v in row.items() if k not in own},
            )
            for row in rows
        ]

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> list[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | list[Picture]:
        return self._pictures[index]

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def sheet(self) -> Path:
        """All of them on one sheet."""
        return self.path / "contact_sheet.png"


@dataclass(frozen=True)
class Scores(Folder):
    """The scores of `score`."""

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One for each picture: image, prompt, each score, and the weighted total."""
        return list(read_json_lines(self.path / "scores.jsonl"))

    @property
    def means(self) -> dict[str, float]:
        """The mean of each score over the pictures that have it."""
        names = [name for name in self.rows[0] if name not in ("image", "prompt")]
        known = {name: [row[name] for row in self.rows if row[name] is not None] for name in names}
        return {name: sum(values) / len(values) for name, values in known.items() if values}


@dataclass(frozen=True)
class Evaluation(Reported):
    """The figures of `evaluate`."""

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One for each picture: prompt, seed, category, and every measure."""
        from textcraftor.evaluation.suite import read_rows_of

        return read_rows_of(self.path)

    @property
    def table(self) -> str:
        """Every measure, and its paired difference from the base, as Markdown."""
        return read_text(self.path / "table.md")


@dataclass(frozen=True)
class Comparison(Folder):
    """The table and picture of `compare`."""

    @property
    def table(self) -> str:
        """Every measure's change in each run, as Markdown."""
        return read_text(self.path / "table.md")

    @property
    def picture(self) -> Path:
        """The runs by two figures, with the front that none is beyond."""
        return self.path / "pareto.png"
