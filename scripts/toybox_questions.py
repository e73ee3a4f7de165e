"""Questions about the second world's scenes, with their true answers, in the layouts of the published suites."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from toybox_captioner import facts

from textcraftor.evaluation.judging.base import YES_NO, Question
from textcraftor.toybox.world2.captions import descriptive
from textcraftor.toybox.world2.scenes import GROUNDS, PLACES, SHAPES, SIZES, Scene, Shape, colors_on
from textcraftor.toybox.world2.wanted import parse

COUNTS = ("1", "2")
OFFERED = 4  # choices of a question with many answers


def offered(answer: str, known: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    """The answer and three others, in an order that says nothing."""
    others = [one for one in known if one != answer]
    chosen = [answer, *rng.choice(others, OFFERED - 1, replace=False).tolist()]
    return tuple(str(one) for one in rng.permutation(chosen))


def questions_about(prompt: str) -> list[Question]:
    """What a prompt of the world states, as TIFA's questions; a question about a shape depends on its being there."""
    wanted, rng, found = parse(prompt), np.random.default_rng(len(prompt)), list[Question]()
    for shape in wanted.shapes:
        name, place = f"{shape.color} {shape.shape}", len(found)
        found.append(Question(f"is there a {name}?", "yes", YES_NO, "object"))
        if shape.size:
            found.append(Question(f"is the {name} small or large?", shape.size, tuple(SIZES), "size", (place,)))
        if shape.place:
            choices = offered(shape.place, tuple(PLACES), rng)
            found.append(Question(f"where is the {name}?", shape.place, choices, "spatial", (place,)))
    if wanted.shapes:
        found.append(Question("how many shapes are there?", str(len(wanted.shapes)), COUNTS, "counting"))
    if wanted.ground:
        choices = offered(wanted.ground, tuple(GROUNDS), rng)
        found.append(Question("what color is the ground?", wanted.ground, choices, "color"))
    if wanted.word:
        found.append(Question(f'is the word "{wanted.word}" in the picture?', "yes", YES_NO, "word"))
    return found


def true_answer(scene: Scene, question: Question) -> str | None:
    """The right answer to a question about a scene; None where none of its choices is."""
    shape = next((one for one in scene.shapes if f"{one.color} {one.shape}" in question.text), None)
    match question.category:
        case "object":
            return "yes" if shape else "no"
        case "size":
            answer = shape.size if shape else None
        case "spatial":
            answer = shape.place if shape else None
        case "counting":
            answer = str(len(scene.shapes))
        case "color":
            answer = scene.ground
        case _:
            return "yes" if scene.word and f'"{scene.word.text}"' in question.text else "no"
    return answer if answer in question.choices else None


def told_wrong(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene of which one or two facts are changed: what a wrong prompt describes."""
    for _ in range(int(rng.integers(1, 3))):
        scene = _changed(scene, rng)
    return scene


def _changed(scene: Scene, rng: np.random.Generator) -> Scene:
    place = int(rng.integers(len(scene.shapes)))
    shape = scene.shapes[place]
    others: dict[str, Sequence[str]] = {"color": colors_on(scene.ground), "shape": SHAPES}
    others |= {"size": tuple(SIZES), "place": tuple(PLACES)}
    name = str(rng.choice(list(others)))
    value = str(rng.choice([one for one in others[name] if one != getattr(shape, name)]))
    shapes: list[Shape] = [*scene.shapes]
    shapes[place] = dataclasses.replace(shape, **{name: value})
    return dataclasses.replace(scene, shapes=tuple(shapes))


def true_share(scene: Scene, prompt: str) -> float:
    """The share of a prompt's facts that hold in a scene, in [0, 1]: the truth that judges are graded by."""
    stated = facts(prompt)
    return len(stated & facts(descriptive(scene))) / len(stated)
