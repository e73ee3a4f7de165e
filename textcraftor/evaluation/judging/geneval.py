"""GenEval's rules: which detections make a picture correct (Ghosh et al., arXiv 2310.11513, and its script)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # of confidence; the higher one where objects are counted
MOST_OBJECTS = 16  # of a class
MARGIN = 0.1  # of both objects' sizes, that a distance must exceed to be one
TINY = 1e-3  # pixels
COUNTING = "counting"


@dataclass(frozen=True)
class Detection:
    """One object.

    Args:
        box: left, top, right, bottom in pixels.
        confidence: in [0, 1].
        mask: which pixels it covers; None of a detector that finds boxes alone.
    """

    box: tuple[float, float, float, float]
    confidence: float
    mask: Bool[np.ndarray, "height width"] | None = None


Detections = Mapping[str, Sequence[Detection]]  # by class, the most confident first
Colors = Callable[[str, Sequence[Detection]], list[str]]  # of a class's objects, the colour of each


def confident(detections: Detections, tag: str, threshold: float, counting_threshold: float) -> dict[str, list]:
    """The detections above a task's threshold, at most 16 of a class, the most confident first."""
    least = counting_threshold if tag == COUNTING else threshold
    kept = {
        name: sorted((one for one in objects if one.confidence > least), key=lambda one: -one.confidence)[:MOST_OBJECTS]
        for name, objects in detections.items()
    }
    return {name: objects for name, objects in kept.items() if objects}


def relations(one: Detection, other: Detection) -> set[str]:
    """Where an object is, seen from another: left of, right of, above, below. The distance of their centres counts as
    far as it exceeds `MARGIN` of both sizes; a direction counts from half of the whole distance on."""
    first, second = (np.reshape(each.box, (2, 2)) for each in (one, other))
    offset = first.mean(0) - second.mean(0)
    sizes = np.abs(first[1] - first[0]) + np.abs(second[1] - second[0])
    beyond = np.maximum(np.abs(offset) - MARGIN * sizes, 0) * np.sign(offset)
    if np.all(np.abs(beyond) < TINY):
        return set()
    x, y = beyond / np.linalg.norm(offset)
    held = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in held.items() if holds}


def verdict(metadata: Mapping[str, Any], detections: Detections, colors: Colors) -> tuple[bool, list[str]]:
    """Whether a picture shows what its metadata wants, and what it lacks.

    Every clause of `include` must hold, of the most confident objects alone; no clause of `exclude` may: so many
    objects of a class, or more.
    """
    faults: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for clause in metadata.get("include", []):
        chosen = detections.get(clause["class"], [])[: clause["count"]]
        lacks = _lacks(clause, chosen, groups, colors)
        faults += lacks
        groups.append(None if lacks else chosen)
    for clause in metadata.get("exclude", []):
        count = len(detections.get(clause["class"], []))
        if count >= clause["count"]:
            faults.append(f"expected {clause['class']}<{clause['count']}, found {count}")
    return not faults, faults


def _lacks(
    clause: Mapping[str, Any],
    chosen: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    colors: Colors,
) -> list[str]:
    """What a clause of `include` wants and a picture lacks."""
    name, count = clause["class"], clause["count"]
    if len(chosen) < count:
        return [f"expected {name}>={count}, found {len(chosen)}"]
    if "color" in clause:
        seen = colors(name, chosen)
        if seen.count(clause["color"]) < count:
            return [f"expected {clause['color']} {name}>={count}, found {', '.join(seen)}"]
    if "position" not in clause:
        return []
    relation, place = clause["position"]
    target = groups[place]
    if target is None:
        return [f"no target for {name} to be {relation}"]
    for one in chosen:
        for other in target:
            if relation not in (there := relations(one, other)):
                return [f"expected {name} {relation} target, found {' and '.join(sorted(there)) or 'neither side'}"]
    return []
