"""A data set's pictures as latents: encoded once, in buckets of one size each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from textcraftor.data.blend import Example, RecordDraw
from textcraftor.data.prompts import step_rng
from textcraftor.data.records import Records
from textcraftor.errors import UsageError
from textcraftor.files.reading import read_json
from textcraftor.files.writing import replacing, write_json
from textcraftor.models.model import Model
from textcraftor.rewards.preprocessing import from_pil
from textcraftor.training.processes import processes_of_this_run

LATENTS = "latents"  # the folder within a run's, until the run is finished
Size = tuple[int, int]  # height, width in pixels


def bucket_sizes(height: int, width: int, step: int, most: float) -> list[Size]:
    """Sizes of about the area of height x width, sides multiples of `step`, aspect ratios within [1 / most, most].

    `height` x `width` itself is the first of them.
    """
    sizes = [(height, width)]
    for one in range(step, int(max(height, width) * most) + 1, step):
        other = height * width // one // step * step
        if other >= step and 1 / most <= one / other <= most and (other, one) not in sizes:
            sizes.append((other, one))
    return sizes


def nearest(picture: Image.Image, sizes: Sequence[Size]) -> Size:
    """The size whose aspect ratio is nearest to the picture's."""
    ratio = picture.width / picture.height
    return min(sizes, key=lambda size: abs(np.log(size[1] / size[0] / ratio)))


def as_tensor(picture: Image.Image, size: Size) -> Float[Tensor, "3 height width"]:
    """Scaled to cover the size, its middle cut out, in [-1, 1]."""
    height, width = size
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return from_pil(picture) * 2 - 1


@dataclass(frozen=True)
class Latents:
    """The latents of every record, scaled as the denoiser wants them.

    Args:
        stored: by size as `<height>x<width>`, (pictures, channels, h, w).
        place: each record's size and its row there.
    """

    stored: dict[str, Tensor]
    place: list[tuple[str, int]]

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, index: int) -> Float[Tensor, "channels h w"]:
        size, row = self.place[index]
        return self.stored[size][row].float()

    def size_of(self, index: int) -> Size:
        """Height and width of a record's picture, in pixels."""
        height, _, width = self.place[index][0].partition("x")
        return int(height), int(width)

    @property
    def buckets(self) -> list[list[int]]:
        """The records of each size."""
        return [[index for index, (size, _) in enumerate(self.place) if size == name] for name in self.stored]

    def joined(self, other: Latents) -> Latents:
        """These, and after them the other's."""
        rows = {size: len(stored) for size, stored in self.stored.items()}
        sizes = dict.fromkeys([*self.stored, *other.stored])
        stored = {size: torch.cat([one.stored[size] for one in (self, other) if size in one.stored]) for size in sizes}
        return Latents(stored, [*self.place, *((size, row + rows.get(size, 0)) for size, row in other.place)])

    def by_size(self, examples: Sequence[Example], rows: Sequence[int]) -> list[list[int]]:
        """A batch's rows, those of one size together."""
        groups: dict[Size, list[int]] = {}
        for row in rows:
            groups.setdefault(self.size_of(examples[row].index), []).append(row)
        return list(groups.values())

    def told(self) -> str:
        return "latents: " + ", ".join(f"{len(rows)} of {size}" for size, rows in self.stored.items())


@torch.no_grad()
def encode_records(
    model: Model, records: Records, sizes: Sequence[Size], folder: Path, batch_size: int = 8
) -> tuple[Records, Latents]:
    """Every picture's latents (the posterior's mean), in half precision; pictures that cannot be read are skipped.

    Args:
        folder: where the first process writes them and a resumed run or another process finds them.

    Returns:
        the records that have latents, and these.
    """
    file, index_file = folder / "latents.safetensors", folder / "latents.json"
    if processes_of_this_run().is_main_process and not index_file.exists():
        broken = dict[int, str]()
        waiting: dict[Size, list[int]] = {}
        place: dict[int, tuple[str, int]] = {}
        stored: dict[str, list[Tensor]] = {}

        def encode(size: Size) -> None:
            """Encode the waiting pictures of a size."""
            encoded = model.to_latents(torch.stack([pixels.pop(index) for index in waiting[size]]))
            name = f"{size[0]}x{size[1]}"
            for index, latents in zip(waiting.pop(size), encoded, strict=True):
                place[index] = name, len(stored.setdefault(name, []))
                stored[name].append(latents.half().cpu())

        pixels = dict[int, Tensor]()
        for index in tqdm(range(len(records)), desc="encoding", unit="picture"):
            try:
                picture = records.picture(index)
            except OSError as error:
                broken[index] = f"its picture cannot be read ({error})"
                continue
            size = nearest(picture, sizes)
            pixels[index] = as_tensor(picture, size)
            waiting.setdefault(size, []).append(index)
            if len(waiting[size]) == batch_size:
                encode(size)
        for size in list(waiting):
            encode(size)
        if not stored:
            raise UsageError(f"none of {len(records)} pictures can be read: {broken[0]}")
        with replacing(file) as partial:
            save_file({name: torch.stack(rows) for name, rows in stored.items()}, partial)
        write_json(index_file, {"broken": broken, "place": [place[index] for index in sorted(place)]})
    processes_of_this_run().wait_for_everyone()
    index = read_json(index_file)
    broken = {int(number): reason for number, reason in index["broken"].items()}
    kept = records.only([number for number in range(len(records)) if number not in broken], broken)
    return kept, Latents(load_file(file), [(size, row) for size, row in index["place"]])


@dataclass(frozen=True)
class PictureDraw:
    """Captions, noise seeds and latents of real pictures for a step; `PromptDraw` gives prompts and seeds alone."""

    draw: RecordDraw
    latents: Latents

    def __call__(self, step: int, batch_size: int) -> tuple[list[str], list[int]]:
        examples = self.draw(step, batch_size)
        return [example.caption for example in examples], [example.noise_seed for example in examples]

    def clean(self, step: int, batch_size: int, rows: Sequence[int]) -> Float[Tensor, "rows channels h w"]:
        examples = self.draw(step, batch_size)
        return torch.stack([self.latents[examples[row].index] for row in rows])

    @property
    def prompts(self) -> list[str]:
        return [record.caption for record in self.draw.records]

    def rng(self, step: int) -> np.random.Generator:
        """Draws what all samples of a step share; the same in every process."""
        return step_rng(self.draw.seed, step)
