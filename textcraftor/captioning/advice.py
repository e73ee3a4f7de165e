"""What an understanding model advises on a picture, as regions with prompts of their own (ArtAug, arXiv 2412.12888)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from textcraftor.config.rules import shown
from textcraftor.errors import UsageError, one_line, printable
from textcraftor.files.reading import check_plain
from textcraftor.sampling.regions import EDGE, Region

MOST_ANSWER = 20_000  # characters
MOST_PROMPT = 1_000  # characters
MOST_REGIONS = 8  # each costs a pass of the denoiser at every step
MOST_STRENGTH = 10.0
SHOWN = 200  # characters of a fault
FINEST = 1000  # steps of a side to which `text_of` rounds boxes in [0, 1]
NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # controls, and halves of signs
START = re.compile(r'\[(?:\s*\{|\n*\])|\{\s*"')  # of a list of objects, of an empty list, or of an object

INSTRUCTION = """This picture was made from the prompt below. Say what would make it more beautiful, while it still \
shows all that the prompt says.

Give global advice, on the whole picture: its light, its angle, its atmosphere. Give local advice, on parts of it: \
what is wrong, dull or missing there, and what should be seen instead.

Answer with a JSON list alone, of at most {most} entries. Each entry has "box": the left, top, right and bottom edge \
of the part as {numbers}, measured from the upper left corner; {whole} is the whole picture. And it has "prompt": a \
description in at most 20 words of what should be seen there. If nothing would make the picture better, answer []. \
An example:
{example}

The prompt: {prompt}"""
EXAMPLE = (
    Region((0.0, 0.0, 1.0, 1.0), "warm evening light from the left, low camera angle, thin mist"),
    Region((0.2, 0.5, 0.5, 0.9), "a dog with detailed fur, sitting upright, looking at the camera"),
)


@dataclass(frozen=True)
class Advice:
    """What would make one picture better; neither regions nor a fault: the model finds nothing to improve.

    Args:
        regions: parts of the picture, each with a prompt for what should be seen there.
        fault: why the model's answer could not be used; then there are no regions.
    """

    regions: tuple[Region, ...] = ()
    fault: str = ""


class Understander(Protocol):
    """A model that looks at pictures and the prompts they were made from, and advises.

    Args:
        name: of the model, for records.
    """

    name: str

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Advice]:
        """Advice on each picture, given one prompt for each."""
        ...


def question(prompt: str, box_scale: int = 1) -> str:
    """What a model is asked about a picture that was made from this prompt.

    Args:
        box_scale: as of `advice_in`.
    """
    numbers = "numbers from 0 to 1" if box_scale == 1 else f"whole numbers from 0 to {box_scale}"
    parts = {"most": MOST_REGIONS, "numbers": numbers, "whole": [0, 0, box_scale, box_scale]}
    parts |= {"example": text_of(EXAMPLE, box_scale), "prompt": prompt}  # the prompt last: it may hold such words
    text = INSTRUCTION
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", str(part))
    return text


def text_of(regions: Iterable[Region], box_scale: int = 1) -> str:
    """The answer that gives this advice, in JSON; boxes are rounded outwards to the resolution of the answer.

    Args:
        box_scale: as of `advice_in`.
    """
    entries = [
        {"box": _box_of(one, box_scale), "prompt": one.prompt}
        | ({} if one.strength == 1 else {"strength": one.strength})
        for one in regions
    ]
    return json.dumps(entries, ensure_ascii=False)


def _box_of(region: Region, box_scale: int) -> list[float]:
    parts = FINEST if box_scale == 1 else box_scale
    near, far = region.box[:2], region.box[2:]
    sides = [math.floor(round(one * parts, 6)) for one in near] + [math.ceil(round(one * parts, 6)) for one in far]
    return [one / parts for one in sides] if box_scale == 1 else [*sides]


def advice_in(answer: str, box_scale: int = 1) -> Advice:
    """The advice in a model's answer: one JSON list of `{"box": [left, top, right, bottom], "prompt": "..."}`, perhaps
    within prose or a code fence. Repeated entries are dropped; one wrong entry, or more than `MOST_REGIONS`, make the
    answer a fault.

    Args:
        box_scale: 1 for boxes in [0, 1]; 1000 for whole numbers from 0 to 1000, as Qwen2-VL and Qwen3-VL are trained to
            write them; 10 for tenths.
    """
    try:
        regions = [_region(entry, box_scale) for entry in _list_in(answer)]
        if {one.prompt for one in regions} & {one.prompt for one in EXAMPLE}:
            raise UsageError("the answer repeats the example of the instruction")
        different = tuple({(one.box, one.prompt): one for one in regions}.values())
        if len(different) > MOST_REGIONS:
            raise UsageError(f"{len(different)} regions, more than {MOST_REGIONS}")
    except UsageError as error:
        return Advice(fault=short(str(error)))
    return Advice(different)


def short(text: str) -> str:
    """The beginning of what a model or a server wrote, in one line that can be shown."""
    return printable(" ".join(text.split()), SHOWN)


def _list_in(answer: str) -> list[Any]:
    """The only JSON list of objects in a text; what a model thinks aloud before its answer is passed over."""
    text = answer.rpartition("</think>")[2].strip()
    if len(text) > MOST_ANSWER:
        raise UsageError(f"the answer has {len(text):,} characters, more than {MOST_ANSWER:,}")
    values, end, decoder = [], 0, json.JSONDecoder(strict=False)
    while start := START.search(text, end):
        try:
            value, end = decoder.raw_decode(text, start.start())
            check_plain(value)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"its JSON is broken or cut short ({one_line(error)})") from error
        values.append(value)
    if not values:
        raise UsageError(f"no JSON list in the answer: {text}" if text else "the answer is empty")
    if len(values) > 1 or not isinstance(values[0], list):
        there = f"{len(values)} lists or objects" if len(values) > 1 else "an object"
        raise UsageError(f"the answer must hold one JSON list, not {there}")
    return values[0]


def _region(entry: Any, box_scale: int) -> Region:
    """A region from what a model wrote; keys that a region does not have are left out."""
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise UsageError(f"an entry must be an object with a box and a prompt, not {shown(entry)}")
    prompt = " ".join(entry["prompt"].split())
    if len(prompt) > MOST_PROMPT:
        raise UsageError(f"a prompt of {len(prompt):,} characters, more than {MOST_PROMPT:,}")
    if NO_TEXT.search(prompt):
        raise UsageError(f"the prompt {prompt!r} has characters that no text can hold")
    box = _shares(entry.get("box"), box_scale)
    region = Region.of({"box": box, "prompt": prompt, "strength": entry.get("strength", 1.0)})
    left, top, right, bottom = region.box
    if min(right - left, bottom - top) < EDGE:
        raise UsageError(
            f"box={shown(entry['box'])} is less than {EDGE:.0%} of the picture's side: {box_scale} is a whole side"
        )
    if region.strength > MOST_STRENGTH:
        raise UsageError(f"strength={shown(region.strength)} is more than {MOST_STRENGTH:g}")
    return region


def _shares(box: Any, box_scale: int) -> Any:
    """A box in shares of the picture's sides; what is no list of numbers is for `Region` to refuse."""
    if box_scale == 1 or not isinstance(box, list):
        return box
    if not all(type(one) is int and 0 <= one <= box_scale for one in box):
        raise UsageError(f"box={shown(box)} must be four whole numbers from 0 to {box_scale}: left, top, right, bottom")
    return [one / box_scale for one in box]
