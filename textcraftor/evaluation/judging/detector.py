"""GenEval by any object detector or instance segmenter of transformers, and CLIP for colours."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
)

from textcraftor.assets import folder_or_id, loading
from textcraftor.errors import UsageError
from textcraftor.evaluation.judging import layouts
from textcraftor.evaluation.judging.base import Answer, Asked, Keep, Question, mean_of, named, rgb
from textcraftor.evaluation.judging.geneval import Detection, confident, verdict
from textcraftor.evaluation.judging.layouts import COLORS
from textcraftor.models.loading import device_of
from textcraftor.rewards.clip import ClipScore
from textcraftor.rewards.preprocessing import from_pil

NEEDED = "an object detector or instance segmenter of transformers"
# GenEval's names of COCO's classes that COCO writes otherwise, and older names of some detectors.
OTHER_NAMES = {
    "computer mouse": ("mouse",),
    "tv remote": ("remote",),
    "computer keyboard": ("keyboard",),
    "tv": ("tvmonitor",),
    "couch": ("sofa",),
    "airplane": ("aeroplane",),
    "motorcycle": ("motorbike",),
    "dining table": ("diningtable",),
    "potted plant": ("pottedplant",),
}
GREY = (0x99, 0x99, 0x99)  # behind an object whose colour is asked
PHRASES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
LEAST_CONFIDENCE = 0.05  # below which nothing is looked at


class Detector:
    """GenEval's six tasks: 1 where the detections satisfy the metadata, else 0.

    Args:
        path: a folder or hub id of a detector whose classes are those of the metadata.
        clip: a folder or hub id of the CLIP that names colours.
        questions: GenEval's `evaluation_metadata.jsonl`.
        threshold, counting_threshold: confidence that an object needs, in general and where it is counted.

    Raises:
        UsageError: the file lacks a field, the detector is not there or does not know a class.
    """

    name, by_task = "geneval", True

    def __init__(
        self,
        path: str,
        clip: str,
        questions: str | None,
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        device: str = "auto",
    ) -> None:
        for key, value in (("threshold", threshold), ("counting_threshold", counting_threshold)):
            if not 0 <= value < 1:
                raise UsageError(f"judge.{key}={value} must be at least 0 and below 1")
        what = "GenEval's evaluation_metadata.jsonl, as suite=geneval does"
        self.by_prompt = layouts.read_questions(questions, layouts.geneval, what)
        self.path, self.clip = folder_or_id(path, "judge.path"), folder_or_id(clip, "judge.clip")
        self.threshold, self.counting_threshold, self.device = threshold, counting_threshold, device_of(device)

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts without metadata, and classes that the detector does not know."""
        if missing := next((prompt for prompt in prompts if prompt not in self.by_prompt), None):
            raise UsageError(f"judge.questions has no metadata of {missing[:60]!r}: choose suite=geneval, or give them")
        known = self._labels
        for prompt in prompts:
            for name in _classes(json.loads(self.by_prompt[prompt][0].text)):
                if name not in known:
                    raise UsageError(
                        f"judge.path={self.path} knows no class {name!r}, only {len(known)} others such as "
                        f"{', '.join(sorted(known)[:3])}: take a detector trained on these classes, as on COCO"
                    )

    def prepare(self, prompts: Sequence[str], keep: Keep) -> None:
        """Questions are known."""

    def questions(self, prompt: str) -> Sequence[Question]:
        return self.by_prompt.get(prompt, ())

    def answers(self, asked: Sequence[Asked]) -> list[Answer]:
        return [self._answer(rgb(one.shown), json.loads(one.question.text)) for one in asked]  # type: ignore[arg-type]

    def figures(self, questions: Sequence[Question], values: Sequence[float | None]) -> dict[str, float]:
        return {**named(self.name, mean_of(values), values)}

    def _answer(self, picture: Image.Image, metadata: Mapping[str, Any]) -> Answer:
        kept = confident(self.detections(picture), metadata["tag"], self.threshold, self.counting_threshold)
        correct, faults = verdict(metadata, kept, partial(self.colors, picture))
        own = {str(name).lower() for name in self._settings.id2label.values()}  # each object under one name alone
        seen = ", ".join(f"{name} {one.confidence:.2f}" for name in kept if name in own for one in kept[name])
        return Answer(f"{'; '.join(faults) or 'correct'} (seen: {seen or 'nothing'})", float(correct))

    @cached_property
    def _settings(self) -> Any:
        with loading(self.path, "judge.path", NEEDED):
            return AutoConfig.from_pretrained(self.path, trust_remote_code=False)

    @cached_property
    def _labels(self) -> dict[str, int]:
        """The number of each class by its names, GenEval's too."""
        labels = {str(name).lower(): int(number) for number, name in self._settings.id2label.items()}
        for name, others in OTHER_NAMES.items():
            number = next((labels[other] for other in others if other in labels), None)
            if number is not None:
                labels.setdefault(name, number)
        return labels

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        """The image processor and the model, loaded when a picture is first looked at."""
        segments = type(self._settings) in AutoModelForUniversalSegmentation._model_mapping
        boxes = type(self._settings) in AutoModelForObjectDetection._model_mapping
        if not segments and not boxes:
            raise UsageError(f"judge.path={self.path} is a {self._settings.model_type}: give {NEEDED}")
        kind: Any = AutoModelForObjectDetection if boxes else AutoModelForUniversalSegmentation
        with loading(self.path, "judge.path", NEEDED):
            processor = AutoImageProcessor.from_pretrained(self.path, trust_remote_code=False)
            model = kind.from_pretrained(self.path, trust_remote_code=False, dtype=torch.float32)
        return processor, model.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def detections(self, picture: Image.Image) -> dict[str, list[Detection]]:
        """Every object by its class, under all names of the class."""
        processor, model = self._parts
        inputs = processor(images=picture, return_tensors="pt").to(self.device)
        outputs, sizes = model(**inputs), [(picture.height, picture.width)]
        if hasattr(processor, "post_process_object_detection"):
            (detected,) = processor.post_process_object_detection(outputs, LEAST_CONFIDENCE, target_sizes=sizes)
            objects = _boxes(detected)
        else:
            (detected,) = processor.post_process_instance_segmentation(
                outputs, LEAST_CONFIDENCE, target_sizes=sizes, return_binary_maps=True
            )
            objects = _segments(detected)
        by_number: dict[int, list[Detection]] = {}
        for number, one in objects:
            by_number.setdefault(number, []).append(one)
        return {name: by_number[number] for name, number in self._labels.items() if number in by_number}

    @cached_property
    def _scorer(self) -> ClipScore:
        return ClipScore.load(self.clip).to(self.device)

    @torch.no_grad()
    def colors(self, picture: Image.Image, name: str, objects: Sequence[Detection]) -> list[str]:
        """The colour of each object by CLIP: its box cut out, on grey where there is a mask, against three phrases for
        each colour, whose embeddings are averaged."""
        crops = [from_pil(cut_out(picture, one))[None].to(self.device) for one in objects]
        seen = torch.cat([self._scorer.embed_pixels(self._scorer.pixels(crop)) for crop in crops])
        texts = [phrase.format(color=color, name=name) for color in COLORS for phrase in PHRASES]
        embeds = self._scorer.texts(texts).unflatten(0, (len(COLORS), len(PHRASES))).mean(1)
        likeness = seen @ torch.nn.functional.normalize(embeds, dim=-1).to(seen).T
        return [COLORS[place] for place in likeness.argmax(1).tolist()]


def cut_out(picture: Image.Image, one: Detection) -> Image.Image:
    """An object's box of a picture; what its mask leaves out is grey."""
    if one.mask is not None:
        blank = Image.new("RGB", picture.size, GREY)
        picture = Image.composite(picture, blank, Image.fromarray(one.mask.astype(np.uint8) * 255))
    left, top, right, bottom = (round(edge) for edge in one.box)
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _boxes(detected: Mapping[str, Any]) -> Iterable[tuple[int, Detection]]:
    """The objects that a detector reports: boxes without masks."""
    for number, score, box in zip(
        detected["labels"].tolist(), detected["scores"].tolist(), detected["boxes"].tolist(), strict=True
    ):
        yield number, Detection(tuple(box), score)


def _segments(detected: Mapping[str, Any]) -> Iterable[tuple[int, Detection]]:
    """The objects that a segmenter reports: boxes around masks."""
    for one, mask in zip(detected["segments_info"], detected["segmentation"], strict=False):
        covered = mask.cpu().numpy() > 0
        if covered.any():
            yield int(one["label_id"]), Detection(_around(covered), float(one["score"]), covered)


def _around(mask: Bool[np.ndarray, "height width"]) -> tuple[float, float, float, float]:
    """The box around a mask, in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _classes(metadata: Mapping[str, Any]) -> list[str]:
    return [clause["class"] for kind in ("include", "exclude") for clause in metadata.get(kind, [])]
