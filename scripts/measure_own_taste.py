"""How far does tuning by one's own ratings raise one's own taste? `python scripts/measure_own_taste.py --store`.

Three simulated people look at pairs of the generator's own pictures, two of each prompt, and choose by a taste of their
own, now and then against it. From their first 50, 100, 200 and 400 choices `train-reward` learns a head, and `train`
tunes the text encoder by it. On held-out prompts the world's truth then says how far that person's taste rose, beside
choosing the best of several untuned pictures by the same head, and beside both by the stock aesthetic scorer, which
knows nobody in particular. Every training seed has its own pairs and its own slips. What is finished is kept: the
script can be interrupted at any time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from results import new_parser, show
from scipy.special import expit
from study import NOTE, Measures, cell, train
from torch import Tensor

import textcraftor
from textcraftor.cli import call, configured, register
from textcraftor.config.making import made
from textcraftor.config.overrides import as_typed
from textcraftor.data.prompt_files import read_prompts
from textcraftor.evaluation.choosing import pair_units
from textcraftor.evaluation.picture_sets import METADATA, read_sets
from textcraftor.evaluation.rating import LEFT, RIGHT, Rating, add, begin
from textcraftor.evaluation.score import load_picture
from textcraftor.files.writing import is_finished, json_line, write_json, write_text
from textcraftor.inference.generate import Sampling, generate
from textcraftor.inference.pictures import save_png
from textcraftor.models.model import Model
from textcraftor.rewards.base import Reward
from textcraftor.rewards.learned import load
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.toybox.world2.judge import check, clean_part
from textcraftor.toybox.world2.reading import Reading, read
from textcraftor.toybox.world2.styles import CRISP, SOFT
from textcraftor.toybox.world2.wanted import parse

SIZES = (50, 100, 200, 400)  # pairs that are rated
PICTURES = 4  # of each held-out prompt, of which the best is chosen
SLIP = 0.1  # of taste: where two pictures differ by so much, one choice in four goes against it
SIDES = ("first", "second")
RATED = "rated"  # the file that says that all pairs were
HELD_OUT = 10_000_000  # the first seed of held-out pictures
FACTS = "faithfulness"


def night(seen: Reading) -> tuple[float, ...]:
    """Dark and soft."""
    style = seen.style
    return style.strength * (style.light == "dark"), float(np.clip((style.softness - CRISP) / (SOFT - CRISP), 0, 1))


def poster(seen: Reading) -> tuple[float, ...]:
    """Flat shapes without shadows on plain grounds."""
    style = seen.style
    return 1 - max(style.gradient, style.stained), 1 - style.shading, 1 - style.shadow


def glossy(seen: Reading) -> tuple[float, ...]:
    """Shaded, vivid shapes with shadows: near the world's own idea of beauty."""
    return seen.style.shading, seen.style.shadow, min(shape.vividness for shape in seen.shapes)


TASTES: dict[str, Callable[[Reading], Sequence[float]]] = {"night": night, "poster": poster, "glossy": glossy}


def truth(picture: Tensor, prompt: str) -> dict[str, float]:
    """How much each person likes a picture (3, 64, 64), in [0, 1], and the share of the prompt's facts that it shows. A
    picture that melts pleases nobody."""
    seen = read(picture.permute(1, 2, 0).numpy())
    shown = seen.style is not None and len(seen.shapes) > 0
    likes = {name: float(np.mean(taste(seen))) * clean_part(seen) if shown else 0.0 for name, taste in TASTES.items()}
    return likes | {FACTS: float(np.mean([held for _, held in check(parse(prompt), seen)]))}


def drawn(model: Model, prompts: Sequence[str], each: int, first: int) -> Tensor:
    """So many pictures of each prompt, (prompts * each, 3, 64, 64); no two have the same noise, which decides about
    style nearly alone."""
    jobs = [(prompt, first + each * number + one) for number, prompt in enumerate(prompts) for one in range(each)]
    return generate(model, jobs, ConditioningSchedule.original(), Sampling(15, 3.0, 64, 64), batch_size=32)


def judged(file: Path, pictures: Callable[[], Tensor], prompts: Sequence[str]) -> Measures:
    """The truth about pictures of prompts, each (1, prompts, pictures of a prompt), kept in a file."""
    if not file.exists():
        images = pictures()
        each = len(images) // len(prompts)
        rows = [truth(image, prompts[place // each]) for place, image in enumerate(images)]
        write_json(file, {name: np.reshape([row[name] for row in rows], (-1, each)).tolist() for name in rows[0]})
    return {name: np.array(values)[None] for name, values in json.loads(file.read_text()).items()}


def make_pairs(folder: Path, model: Model, prompts: Sequence[str], first: int) -> None:
    """Two pictures of each prompt, in folders as `generate` writes them."""
    images = drawn(model, prompts, 2, first)
    for side, name in enumerate(SIDES):
        lines = []
        for number, prompt in enumerate(prompts):
            save_png(images[2 * number + side], folder / name / f"{number:04d}.png", {"prompt": prompt})
            lines.append(json_line({"file_name": f"{number:04d}.png", "caption": prompt, "seed": 0}))
        write_text(folder / name / METADATA, "".join(lines))


def rate(folder: Path, seed: int) -> None:
    """Each person's choice between the two pictures of every prompt, in random order, kept where `rate` keeps them."""
    sets, rng = read_sets({name: str(folder / name) for name in SIDES}), np.random.default_rng(seed)
    about = {name: one.fingerprint for name, one in sets.items()}
    files = {taste: folder / f"{taste}.jsonl" for taste in TASTES}
    for file in files.values():
        file.unlink(missing_ok=True)
    ratings = {taste: begin(file, about, {"prefer": "Which do you prefer?"}) for taste, file in files.items()}
    for number, unit in enumerate(rng.permutation(np.array(pair_units(sets), dtype=object))):
        pictures = [load_picture(sets[name].files[unit.prompt, unit.seed]) for name in unit.models]
        one, other = (truth(picture, unit.prompt) for picture in pictures)
        for taste, file in files.items():
            answer = LEFT if rng.random() < expit((one[taste] - other[taste]) / SLIP) else RIGHT
            time = f"2026-01-01T00:00:00.{number:06d}+00:00"
            given = Rating(time, taste, "prefer", unit.prompt, unit.seed, unit.models, answer)
            add(file, ratings[taste], given)
    write_text(folder / RATED, "")


def first_of(file: Path, size: int) -> Path:
    """A file with the first so many ratings."""
    part = file.with_name(f"{file.stem}_{size}.jsonl")
    write_text(part, "".join(file.read_text().splitlines(keepends=True)[: 1 + size]))
    return part


@dataclass(frozen=True)
class OwnTaste:
    """The study's parts, kept below one folder.

    Args:
        keys: of every command, such as the model.
        tuning: further ones of `train`.
        prompts, held_out: to rate pictures of, and to judge by.
    """

    folder: Path
    keys: Sequence[str]
    tuning: Sequence[str]
    prompts: Sequence[str]
    held_out: Sequence[str]

    @property
    def model(self) -> Model:
        """The untuned model."""
        return textcraftor.load("device=cpu", *self.keys)

    def pairs(self, seed: int) -> Path:
        """Where the pictures that are rated with this seed are, with everybody's ratings."""
        return self.folder / f"pairs_{seed}"

    def rated(self, seed: int, count: int) -> None:
        """Have so many pairs rated."""
        place = self.pairs(seed)
        chosen = np.random.default_rng(seed).choice(self.prompts, count, replace=False)
        if not (place / SIDES[-1] / METADATA).exists():
            make_pairs(place, self.model, [str(prompt) for prompt in chosen], 2 * count * seed)
        if not (place / RATED).exists():
            rate(place, seed)

    def learned(self, taste: str, size: int, seed: int) -> Path:
        """A reward from the first so many of a person's choices."""
        place, pairs = self.folder / "learned" / f"{taste}_{size}_{seed}", self.pairs(seed)
        if not is_finished(place):
            models = [f"models.{name}={pairs / name}" for name in SIDES]
            ratings = first_of(pairs / f"{taste}.jsonl", size)
            given = [f"ratings=[{ratings}]", *models, f"features={self.folder / 'features'}", "draws=0"]
            call("train-reward", [*self.keys, *given, f"seed={seed}", f"run_dir={place}"])
        return place

    def tuned(self, name: str, seed: int, *rewards: str) -> Measures:
        """The truth about a run's pictures of the held-out prompts."""
        place = self.folder / "runs" / f"{name}_{seed}"
        train(place, *self.keys, *self.tuning, *rewards, f"seed={seed}")

        def pictures() -> Tensor:
            pipeline = self.model.pipeline
            pipeline.text_encoder = textcraftor.Mix({"own": place}, {"own": 1.0}).encoder(pipeline)
            return drawn(Model(pipeline), self.held_out, PICTURES, HELD_OUT)

        return judged(self.folder / "judged" / f"{name}_{seed}.json", pictures, self.held_out)

    def chosen(self, reward: Reward, images: Tensor, base: Measures) -> Measures:
        """The truth about the picture of each prompt that a reward likes best."""
        prompts = [prompt for prompt in self.held_out for _ in range(PICTURES)]
        with torch.no_grad():
            best = reward(images, prompts).reshape(1, -1, PICTURES).argmax(2, keepdim=True).numpy()
        return {name: np.take_along_axis(values, best, 2) for name, values in base.items()}

    def stock(self) -> Reward:
        """The aesthetic scorer that goes with the model."""
        config = configured("train", as_typed("train", [*self.keys, "rewards=aesthetic"]))
        return made(config.rewards.aesthetic.reward)


def joined(several: Sequence[Measures]) -> Measures:
    """Those of several training seeds together."""
    return {name: np.concatenate([one[name] for one in several]) for name in several[0]}


def accuracy_of(places: Sequence[Path]) -> dict[str, float]:
    """The mean accuracy that `train-reward` told of several seeds, and its spread."""
    means = [json.loads((place / "summary.json").read_text())["accuracy"]["mean"] for place in places]
    return {"mean": float(np.mean(means))} | ({"sd": float(np.std(means, ddof=1))} if len(means) > 1 else {})


def table(study: OwnTaste, taste: str, sizes: Sequence[int], seeds: Sequence[int]) -> list[list]:
    """A row for each number of pairs, and the stock scorer's."""
    images = drawn(study.model, study.held_out, PICTURES, HELD_OUT)
    base = judged(study.folder / "judged" / "base.json", lambda: images, study.held_out)
    rows = []
    for size in sizes:
        places = [study.learned(taste, size, seed) for seed in seeds]
        mine = [
            study.tuned(f"{taste}_{size}", seed, "rewards=mine", f"rewards.mine.path={place}")
            for place, seed in zip(places, seeds, strict=True)
        ]
        best = [study.chosen(load(str(place)), images, base) for place in places]
        rows.append([str(size), accuracy_of(places), *cells(base, joined(mine), joined(best), taste)])
    clip = ("rewards=aesthetic", "+reward@rewards.clip=clip", "rewards.clip.weight=5")
    stock = joined([study.tuned("stock", seed, *clip) for seed in seeds])
    rows.append(["stock aesthetic", None, *cells(base, stock, study.chosen(study.stock(), images, base), taste)])
    return rows


def cells(base: Measures, tuned: Measures, best: Measures, taste: str) -> list[Mapping]:
    """What tuning and choosing did to a person's taste, and tuning to the facts."""
    return [cell(base[taste], tuned[taste]), cell(base[taste], best[taste]), cell(base[FACTS], tuned[FACTS])]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/own_taste"))
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES), help="pairs that are rated")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of pairs, slips and training")
    parser.add_argument("--tastes", nargs="*", default=list(TASTES), choices=TASTES)
    parser.add_argument("--prompts", type=int, default=64, help="held-out ones")
    parser.add_argument("--keys", nargs="*", default=[], help="of every command, such as model.path=FOLDER")
    parser.add_argument("--tuning", nargs="*", default=[], help="further keys of train, such as training.steps=5")
    arguments = parser.parse_args()
    register()
    config = configured("train", as_typed("train", arguments.keys))
    given = read_prompts(Path(config.model.prompts.path)), read_prompts(Path(config.model.prompts.held_out))
    folder = arguments.folder.resolve()
    study = OwnTaste(folder, arguments.keys, arguments.tuning, given[0], given[1][: arguments.prompts])
    for seed in arguments.seeds:
        study.rated(seed, max(arguments.sizes))
    columns = ["pairs", ("foreseen choices", ".3f"), *((name, "+.3f") for name in ("tuned", f"best of {PICTURES}"))]
    for taste in arguments.tastes:
        rows = table(study, taste, arguments.sizes, arguments.seeds)
        show("own_taste", taste, [*columns, (FACTS, "+.3f")], rows, arguments.store, seeds=arguments.seeds)
    print(f"\nChanges of each person's own taste, in [0, 1], and of the facts when tuned. {NOTE}")


if __name__ == "__main__":
    main()
