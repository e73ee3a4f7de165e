"""What every reference runner does: write random weights in the published layout, or score a job's pictures.

A runner is started in the environment of its package as `python -m parity.NAME job.json`. The job is a dictionary:

    make:      write the checkpoint and stop
    pictures:  PNG files, each scored with its own prompt of `prompts`
    pixels:    an .npz with the first pictures in order, as our preprocessing made them
    token_prompts, gradients (how many pictures are differentiated), out (the .npz with the results)

and whatever the runner itself needs: where its checkpoint is, and small sizes for the golden figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Job = dict[str, Any]


class Reference(Protocol):
    """A published scorer."""

    def preprocess(self, picture: Image.Image) -> Tensor:
        """Its own preprocessing, (3, size, size)."""

    def tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        """Its own token ids, and the mask where it reads one."""

    def read(self, prompts: list[str]) -> dict[str, Tensor]:
        """What it keeps of prompts, one row each; `text_features` are compared."""

    def score(self, pixels: Tensor, texts: dict[str, Tensor]) -> dict[str, Tensor]:
        """`score` and, where it has them, `image_features`, of preprocessed pictures and their texts."""


def without_torchvision_ops() -> None:
    """Let torchvision import beside a CPU build of torch: its compiled part, which no scorer uses, cannot load.

    Call it before the first import of torchvision. Resizing, cropping and normalising need none of it.
    """
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


_kept: list[torch.library.Library] = []


def stub(name: str, **contents: object) -> None:
    """Put an empty module where a package imports one that scoring does not need."""
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(contents)


def save_half(state: dict[str, Tensor], path: str) -> None:
    """A state dict as HPSv2's and open_clip's trainers save it, fp16."""
    torch.save({"state_dict": {key: value.half() for key, value in state.items()}}, path)


def nothing(job: Job) -> None:
    """The `make` of a runner whose checkpoint is written by `Case.prepare`."""


def joined(pixels: list[Tensor]) -> Tensor:
    """The preprocessed pictures as one array; in a row where they are not of one size."""
    same = all(picture.shape == pixels[0].shape for picture in pixels)
    return torch.stack(pixels) if same else torch.cat([picture.flatten() for picture in pixels])


def score_all(
    reference: Reference, pixels: list[Tensor], texts: dict[str, Tensor], prefix: str
) -> dict[str, np.ndarray]:
    """Scores of preprocessed pictures, one at a time so that memory stays low."""
    rows = []
    for index, picture in enumerate(pixels):
        with torch.no_grad():
            rows.append(reference.score(picture[None], {key: value[[index]] for key, value in texts.items()}))
    return {prefix + key: torch.cat([row[key] for row in rows]).float().numpy() for key in rows[0]}


def gradients(reference: Reference, pixels: list[Tensor], texts: dict[str, Tensor]) -> np.ndarray:
    """d score / d pixels of every picture."""
    found = []
    for index, picture in enumerate(pixels):
        leaf = picture[None].clone().requires_grad_()
        reference.score(leaf, {key: value[[index]] for key, value in texts.items()})["score"].sum().backward()
        found.append(leaf.grad[0].float())
    return joined(found).numpy()


def answer(reference: Reference, job: Job) -> dict[str, np.ndarray]:
    """All that a job asks for."""
    results = {f"tokens_{key}": value.numpy() for key, value in reference.tokens(job["token_prompts"]).items()}
    with torch.no_grad():
        texts = reference.read(job["prompts"])
    if "text_features" in texts:
        results["text_features"] = texts["text_features"].float().numpy()
    own = [reference.preprocess(Image.open(path)) for path in job["pictures"]]
    results["own_pixels"] = joined(own).numpy()
    results |= score_all(reference, own, texts, "own_")
    if job.get("pixels"):
        given = [torch.from_numpy(picture) for picture in np.load(job["pixels"]).values()]
        results |= score_all(reference, given, texts, "same_")
        results["gradients"] = gradients(reference, given[: job["gradients"]], texts)
    return results


def run(make: Callable[[Job], None], load: Callable[[Job], Reference]) -> None:
    """A runner's main: the job is the file named on the command line."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    job: Job = json.loads(Path(sys.argv[1]).read_text())
    if job.get("make"):
        make(job)
    else:
        np.savez(job["out"], **answer(load(job), job))
