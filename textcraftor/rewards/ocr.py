"""OCR legibility: is the text that the prompt quotes written in the picture?

A recogniser's log-likelihood of the wanted text, as AnyText's perceptual loss asks a recogniser (Tuo et al. 2023,
section 3.4), but over the whole picture, since nobody says where the text shall stand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from rapidfuzz.distance import Levenshtein
from scipy import ndimage
from torch import Tensor, nn
from transformers import PPOCRV5ServerDetForObjectDetection

from textcraftor.errors import UsageError
from textcraftor.rewards.base import Reward
from textcraftor.rewards.checkpoints import load_pretrained, read_settings
from textcraftor.rewards.preprocessing import normalize, resize
from textcraftor.rewards.reading import Recogniser
from textcraftor.rewards.recognisers import load_recogniser

Box = tuple[int, int, int, int]  # top, left, bottom, right, in pixels
_QUOTED = re.compile(r'(?<![\d¼½¾])"([^"]+)"|“([^”]+)”')


def quoted(prompt: str) -> list[str]:
    """The texts that a prompt wants written: those in double quotes, straight or curly. A straight one right after
    a number opens none: it is an inch mark."""
    return [text for pair in _QUOTED.findall(prompt) for text in (part.strip() for part in pair) if text]


def windows(height: int, width: int, grid: Sequence[Sequence[int]]) -> list[Box]:
    """Boxes that overlap by half: for each (rows, columns) of the grid, as many as fit at half steps."""
    boxes = []
    for rows, columns in grid:
        tall, wide = height // rows, width // columns
        if not tall or not wide:
            raise UsageError(f"grid [{rows}, {columns}] is finer than a picture of {height} x {width} pixels")
        tops = [round(step * (height - tall) / max(1, 2 * rows - 2)) for step in range(2 * rows - 1)]
        lefts = [round(step * (width - wide) / max(1, 2 * columns - 2)) for step in range(2 * columns - 1)]
        boxes += [(top, left, top + tall, left + wide) for top in tops for left in lefts]
    return list(dict.fromkeys(boxes))


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


class Detector(nn.Module):
    """PP-OCRv5's server detector: axis-aligned boxes around text (Liao et al. 2020, section 3.5). No gradient.

    Args:
        threshold: pixels above this probability are text.
        unclip: boxes grow by area * unclip / perimeter, for the model finds shrunk text.
    """

    LONG_SIDE, STRIDE, MIN_SIDE = 960, 32, 3

    def __init__(self, model: PPOCRV5ServerDetForObjectDetection, processing, threshold=0.3, unclip=1.5) -> None:
        super().__init__()
        self.model, self.processing, self.threshold, self.unclip = model, processing, threshold, unclip
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: str) -> Detector:
        model = load_pretrained(PPOCRV5ServerDetForObjectDetection, path, "text detector")
        return cls(model, read_settings(path, "preprocessor_config.json", "text detector"))

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[list[Box]]:
        """The boxes of each picture, none where it shows no text."""
        height, width = images.shape[-2:]
        scale = min(1.0, self.LONG_SIDE / max(height, width))
        tall, wide = (max(self.STRIDE, round(side * scale / self.STRIDE) * self.STRIDE) for side in (height, width))
        settings = self.processing
        pixels = normalize(resize(images, tall, wide, "bilinear"), settings["image_mean"], settings["image_std"])
        probability = self.model(pixels[:, [2, 1, 0]].to(self.model.dtype)).last_hidden_state
        maps = resize(probability.float(), height, width, "bilinear")[:, 0].cpu().numpy()
        return [self._boxes(map_) for map_ in maps]

    def _boxes(self, probability: np.ndarray) -> list[Box]:
        boxes = []
        for rows, columns in ndimage.find_objects(ndimage.label(probability > self.threshold)[0]):
            tall, wide = rows.stop - rows.start, columns.stop - columns.start
            if min(tall, wide) < self.MIN_SIDE:
                continue
            grow = round(tall * wide * self.unclip / (2 * (tall + wide)))
            box = (rows.start - grow, columns.start - grow, rows.stop + grow, columns.stop + grow)
            limits = (*probability.shape, *probability.shape)
            boxes.append(tuple(min(max(0, side), limit) for side, limit in zip(box, limits, strict=True)))
        return boxes


class OcrLegibility(Reward):
    """log P(wanted text) per character, at most 0; 0 and no gradient for a prompt without quotes.

    Over the crops of a picture it is log-mean-exp: the crop that shows most of the text counts most, and there is a
    gradient everywhere before any text is legible. Several quoted texts: their mean.

    Args:
        recogniser: see `load_recogniser`.
        grid: (rows, columns) of each set of crops, which overlap by half.
        detector: where to look instead; the grid's crops serve where it finds no text.
        unwanted: weight of minus the probability of text, mean over the crops where none was asked for: all of
            them without quotes, else those that do not touch the crop in which a wanted text is most likely.
    """

    def __init__(
        self,
        recogniser: Recogniser,
        grid: Sequence[Sequence[int]],
        detector: Detector | None = None,
        unwanted: float = 0.0,
    ) -> None:
        super().__init__()
        if unwanted < 0:
            raise UsageError(f"unwanted={unwanted} must be at least 0: it is the weight of what is taken away")
        if not grid or any(len(cells) != 2 or min(cells) < 1 for cells in grid):
            raise UsageError(f"grid={list(grid)} must be a list of [rows, columns], each at least 1, such as [[4, 1]]")
        self.recogniser, self.detector = recogniser, detector
        self.grid, self.unwanted = [tuple(cells) for cells in grid], unwanted
        self.freeze()

    @classmethod
    def load(
        cls,
        recogniser: str,
        grid: Sequence[Sequence[int]],
        detector: str | None = None,
        unwanted: float = 0.0,
        alphabet: str | None = None,
    ) -> OcrLegibility:
        """Load a recogniser, and a detector where one is named, from folders or hub ids; see `load_recogniser`."""
        reader = load_recogniser(recogniser, alphabet)
        return cls(reader, grid, Detector.load(detector) if detector else None, unwanted)

    def check(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            for text in quoted(prompt):
                try:
                    self.recogniser.check(text)
                except UsageError as error:
                    raise UsageError(f"prompt {prompt!r}: {error}") from error

    def applies(self, prompts: Sequence[str]) -> list[bool]:
        return [bool(self.unwanted or quoted(prompt)) for prompt in prompts]

    def boxes(self, images: Float[Tensor, "batch 3 height width"]) -> list[list[Box]]:
        """Where to read in each picture."""
        height, width = images.shape[-2:]
        everywhere = windows(height, width, self.grid)
        if self.detector is None:
            return [everywhere] * len(images)
        return [own or everywhere for own in self.detector(images)]

    def look(self, images: Float[Tensor, "batch 3 height width"]) -> tuple[list[list[Box]], list[Tensor]]:
        """The boxes of each picture and what the recogniser sees in them."""
        boxes = self.boxes(images)
        pixels: dict[tuple[int, int], Tensor] = {}
        for box in dict.fromkeys(box for own in boxes for box in own):  # one resize for all pictures that share it
            rows = [row for row, own in enumerate(boxes) if box in own]
            crops = self.recogniser.pixels(images[rows, :, box[0] : box[2], box[1] : box[3]])
            pixels |= {(row, boxes[row].index(box)): crop for row, crop in zip(rows, crops, strict=True)}
        order = [(row, index) for row, own in enumerate(boxes) for index in range(len(own))]
        seen = self.recogniser.encode(torch.stack([pixels[place] for place in order]))
        return boxes, list(seen.split([len(own) for own in boxes]))

    def _legibility(self, seen: Sequence[Tensor], wanted: Sequence[list[str]]) -> list[list[Tensor]]:
        """For each picture and each of its texts, the log-likelihood in each crop."""
        pairs = [(own, text) for own, texts in zip(seen, wanted, strict=True) for text in texts]
        texts = [text for own, text in pairs for _ in range(len(own))]
        likelihoods = self.recogniser.log_likelihood(torch.cat([own for own, _ in pairs]), texts)
        parts = iter(likelihoods.split([len(own) for own, _ in pairs]))
        return [[next(parts) for _ in texts] for texts in wanted]

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        wanted = [quoted(prompt) for prompt in prompts]
        rows = [row for row, texts in enumerate(wanted) if texts or self.unwanted]
        scores = list(images[:, 0, 0, 0] * 0)  # stays in the graph, so that a batch without quotes is no error
        if not rows:
            return torch.stack(scores)
        boxes, seen = self.look(images[rows])
        with_text = [place for place, row in enumerate(rows) if wanted[row]]
        legibility = (
            self._legibility([seen[i] for i in with_text], [wanted[rows[i]] for i in with_text]) if with_text else []
        )
        best: dict[int, list[Box]] = {}
        for place, parts in zip(with_text, legibility, strict=True):
            each = [part.logsumexp(0) - np.log(len(part)) for part in parts]
            scores[rows[place]] = torch.stack(each).mean().to(images.dtype)
            best[place] = [boxes[place][int(part.argmax())] for part in parts] if self.unwanted else []
        if self.unwanted:
            empty = self.recogniser.log_likelihood(torch.cat(seen), [""] * sum(map(len, seen)))
            for place, part in enumerate((1 - empty.exp()).split([len(own) for own in seen])):
                free = [not any(overlap(box, other) for other in best.get(place, [])) for box in boxes[place]]
                if any(free):
                    scores[rows[place]] = scores[rows[place]] - self.unwanted * part[free].mean().to(images.dtype)
        return torch.stack(scores)

    @torch.no_grad()
    def measure(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """`accuracy`: 1 - edit distance / length of the wanted text in the crop that reads best, letter case and
        spaces aside, as Flow-GRPO's judge (Liu et al. 2025); NaN without quotes."""
        wanted = [quoted(prompt) for prompt in prompts]
        accuracy = torch.full((len(images),), float("nan"))
        rows = [row for row, texts in enumerate(wanted) if texts]
        if rows:
            _, seen = self.look(images[rows])
            read = iter(self.recogniser.read(torch.cat(seen)))
            for row, own in zip(rows, seen, strict=True):
                readings = [plain(next(read)) for _ in range(len(own))]
                accuracy[row] = float(
                    np.mean([max(agreement(plain(text), reading) for reading in readings) for text in wanted[row]])
                )
        return {"accuracy": accuracy}


def plain(text: str) -> str:
    """Lower case, without spaces."""
    return "".join(text.lower().split())


def agreement(wanted: str, read: str) -> float:
    """1 - edit distance / length of the wanted text, at least 0; 1 where the reading contains it."""
    return 1.0 if wanted in read else max(0.0, 1 - Levenshtein.distance(wanted, read) / len(wanted))
