"""Which judge to believe: `python scripts/measure_judges_agreement.py --model runs/vqa/vqa`.

Scenes of the second world stand under prompts of which half are wrong in one or two facts, so the truth is known. Each
protocol of `judge=vlm` judges them by the same model, and the world's own judge reads them back. Printed for each: the
rank correlation of its figure with the share of facts that are true; how often it puts a picture under a right prompt
above one under a wrong prompt (ties half); and what it did not answer. Pairs: how often it prefers the picture that the
truth prefers (ties half). Answers are kept, so an interrupted command goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from results import new_parser, show
from scipy import stats
from toybox_questions import questions_about, told_wrong, true_share
from toybox_vqa import picture_of

from textcraftor.captioning.understanding import AskedModel
from textcraftor.evaluation.judging.answers import Answers
from textcraftor.evaluation.judging.base import Judge
from textcraftor.evaluation.judging.chunks import simple_chunks
from textcraftor.evaluation.judging.judged import Picture, ask, judged, table_of
from textcraftor.evaluation.judging.measures import Measures
from textcraftor.evaluation.judging.pairwise import Pairwise, scores
from textcraftor.evaluation.judging.protocols import B_VQA, VQASCORE
from textcraftor.evaluation.judging.vlm import Choices, Chunks, Dependent, Likelihood, Verdict
from textcraftor.files.writing import write_json
from textcraftor.toybox.world2.captions import descriptive
from textcraftor.toybox.world2.judge import Judge as Truth
from textcraftor.toybox.world2.scenes import Scene, sample_scene


def drawn(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Held-out scenes, each with a prompt; every second prompt is wrong."""
    found = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        scene = sample_scene(rng, "test")
        found.append((scene, descriptive(told_wrong(scene, rng) if number % 2 else scene)))
    return found


def judges(model: AskedModel, prompts: Sequence[str]) -> dict[str, tuple[Judge, str]]:
    """Every protocol and the figure that is graded."""
    asked, by_prompt = (lambda: model), {prompt: questions_about(prompt) for prompt in prompts}
    vlm: list[Any] = [Verdict(asked), Choices(asked, by_prompt), Dependent(asked, by_prompt)]
    vlm += [Chunks(asked, *B_VQA, simple_chunks), Likelihood(asked, *VQASCORE)]
    named = {judge.name: (judge, judge.name) for judge in vlm}
    return {**named, "the world's own judge": (Measures(Truth(), ["faithfulness"]), "faithfulness")}


def above(figures: np.ndarray, right: np.ndarray) -> float:
    """How often a picture under a right prompt is above one under a wrong prompt, ties half; what is not answered is
    left out."""
    known = ~np.isnan(figures)
    good, bad = figures[known & right], figures[known & ~right]
    difference = good[:, None] - bad[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean()) if difference.size else float("nan")


def row_of(name: str, judge: Judge, figure: str, pictures: list[Picture], truth: np.ndarray, answers: Answers) -> list:
    """A judge's line of the table."""
    ask(judge, pictures, answers, batch_size=16)
    found = judged(judge, pictures, answers)
    assert found is not None
    figures = np.array([judge.figures(one.questions, one.values)[figure] for one in found])
    known = ~np.isnan(figures)
    rank = stats.spearmanr(figures[known], truth[known]).statistic if known.sum() > 2 else float("nan")
    table = table_of(judge, found)
    each = table["questions"] / len(found)
    return [name, each, float(rank), above(figures, truth == 1), table["unanswered"]]


def row_of_pairs(model: AskedModel, scenes: list[tuple[Scene, str]], answers: Answers) -> list:
    """The line of pairwise comparison: each scene against one that is wrong in a fact or two, under its own prompt."""
    pairs, right = [], []
    for number, (scene, _) in enumerate(scenes):
        prompt, other = descriptive(scene), told_wrong(scene, np.random.default_rng((85, number)))
        pairs.append((prompt, picture_of(other), picture_of(scene), f"scene {number}"))
        right.append(true_share(other, prompt) < 1)
    found = scores(Pairwise(lambda: model), pairs, answers, batch_size=16)
    known = [value for value, differs in zip(found, right, strict=True) if value is not None and differs]
    agreed = float(np.mean(known)) if known else float("nan")
    return ["pairwise, both orders", 2.0, float("nan"), agreed, sum(value is None for value in found) / len(found)]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, default=Path("runs/vqa/vqa"), help="what scripts/toybox_vqa.py wrote")
    parser.add_argument("--folder", type=Path, default=Path("runs/judges"))
    parser.add_argument("--count", type=int, default=400, help="scenes")
    parser.add_argument("--seed", type=int, default=86)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    model = AskedModel(str(arguments.model), tries=3, max_new_tokens=40, batch_size=16, device=arguments.device)
    weights = hashlib.sha256((arguments.model / "model.safetensors").read_bytes()).hexdigest()
    scenes = drawn(arguments.count, arguments.seed)
    truth = np.array([true_share(*one) for one in scenes])
    places = enumerate(scenes)
    pictures = [Picture(f"scene {place}", prompt, partial(picture_of, scene)) for place, (scene, prompt) in places]
    rows = []
    for name, (judge, figure) in judges(model, [prompt for _, prompt in scenes]).items():
        answers = Answers(arguments.folder / judge.name, weights)
        rows.append(row_of(name, judge, figure, pictures, truth, answers))
        print(rows[-1], flush=True)
    rows.append(row_of_pairs(model, scenes, Answers(arguments.folder / "pairwise", weights)))
    names = ["judge", "questions", "rank correlation", "right above wrong", "unanswered"]
    write_json(arguments.folder / "agreement.json", [dict(zip(names, row, strict=True)) for row in rows])
    columns = [names[0], ("questions a picture", ".1f"), *((name, ".3f") for name in names[2:])]
    cells = [[None if cell != cell else cell for cell in row] for row in rows]  # NaN differs from itself
    show("judges", "agreement", columns, cells, arguments.store, scenes=arguments.count)


if __name__ == "__main__":
    main()
