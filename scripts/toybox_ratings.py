"""What the toybox's raters looked at, and what they thought: the generator's own pictures, and scenes gone wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from diffusers import AutoencoderKL
from torch import Tensor

from textcraftor.inference.generate import Sampling, generate
from textcraftor.models.loading import load_pipeline
from textcraftor.models.model import Model
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.toybox.world2.captions import Kind, caption, descriptive, short
from textcraftor.toybox.world2.judge import WHOLE, figures, place_of, row_of
from textcraftor.toybox.world2.reading import Reading, SeenStyle, read
from textcraftor.toybox.world2.render import letter_cells, render
from textcraftor.toybox.world2.scenes import (
    COLORS,
    GROUNDS,
    IMAGE_SIZE,
    LETTER_CELL,
    LETTERS,
    PLACES,
    SHAPES,
    SIZES,
    WORD_LENGTHS,
    Scene,
    Split,
    center_of,
    colors_on,
    sample_scene,
)
from textcraftor.toybox.world2.styles import CRISP, SOFT, Style
from textcraftor.toybox.world2.wanted import parse
from textcraftor.training.processes import processes_of_this_run

SAMPLE_ROUNDS, SAMPLE_PROMPTS, VARIED_PROMPTS, PICTURES = 3, 3000, 6000, 4
SAMPLE_SETTINGS = ((4, 2.0), (5, 4.0), (8, 1.0), (8, 3.0), (12, 2.0), (15, 3.0))  # (steps, guidance_scale)
SPLIT_SEEDS: dict[Split, int] = {"train": 2, "validation": 3, "test": 4}
SPOILED = 0.5  # share of the varied pictures that go through the autoencoder with noise in their latents


@cache
def scene(index: int) -> Scene:
    """The training scene with this number: the same on every machine."""
    return sample_scene(np.random.default_rng((SPLIT_SEEDS["train"], index)), word_probability=0.6)


def draw_captions(indices: np.ndarray, shares: Mapping[Kind, float], rng: np.random.Generator) -> list[str]:
    """One caption a training scene, its kind drawn with the given shares."""
    kinds = rng.choice(list(shares), p=list(shares.values()), size=len(indices))
    return [caption(scene(int(index)), kind, rng) for index, kind in zip(indices, kinds, strict=True)]


LIGHTS, GROUND_FINISHES = ("good", "dark", "faded"), ("plain", "gradient", "stained")
FACTS = (  # how many answers each question about a picture has, see `facts_of`
    *(len(LIGHTS), 2, len(GROUND_FINISHES), 2, 2),
    len(GROUNDS),
    *(2, len(SHAPES), len(SIZES), len(PLACES)) * len(COLORS),
    *(len(LETTERS) + 1,) * (2 * max(WORD_LENGTHS)),
)
PATCH = 8
CELLS = 1 + len(COLORS) * len(SHAPES) + len(LETTERS)  # what a patch may show: nothing, a shape in a colour, a letter


def facts_of(
    style: Sequence[int], ground: str, shapes: Sequence[tuple[str, str, str, str]], words: Mapping[str, str]
) -> list[int]:
    """Everything about a picture as class indices, one for each question of `FACTS`; -100 where it does not arise.

    Args:
        style: light, whether it is out of focus, the ground's finish, whether shapes are shaded and throw a shadow.
        shapes: (color, shape, size, place) of each, at most one of a colour counts.
        words: by row.
    """
    by_color = {shape[0]: shape[1:] for shape in reversed(shapes)}
    facts = [*style, list(GROUNDS).index(ground)]
    for color in COLORS:
        shape, size, place = by_color.get(color, ("", "", ""))
        facts += [int(color in by_color)]
        facts += [SHAPES.index(shape), list(SIZES).index(size), list(PLACES).index(place)] if shape else [-100] * 3
    for row in ("top", "bottom"):
        facts += [letter_at(words.get(row, ""), place) for place in range(max(WORD_LENGTHS))]
    return facts


def letter_at(text: str, place: int) -> int:
    """The letter's number, one more for none, -100 for ink that is no letter."""
    if place >= len(text):
        return len(LETTERS)
    return LETTERS.index(text[place]) if text[place] in LETTERS else -100


def style_of(style: Style) -> tuple[int, ...]:
    """A scene's style as class indices."""
    finish = GROUND_FINISHES.index(style.ground)
    return LIGHTS.index(style.light), int(style.softness > 0), finish, int(style.shaded), int(style.shadow)


def style_seen(style: SeenStyle | None) -> tuple[int, ...]:
    """A style that was read from a picture as class indices, each factor the likelier answer."""
    if style is None:
        return (-100,) * 5
    light = LIGHTS.index(style.light if style.strength > 0.3 else "good")
    finish = 2 if style.stained > max(style.gradient, 0.5) else int(style.gradient > 0.5)
    return light, int(style.softness > (CRISP + SOFT) / 2), finish, int(style.shading > 0.5), int(style.shadow > 0.5)


def facts_of_scene(drawn: Scene) -> list[int]:
    shapes = [(shape.color, shape.shape, shape.size, shape.place) for shape in drawn.shapes]
    words = {drawn.word.row: drawn.word.text} if drawn.word else {}
    return facts_of(style_of(drawn.style), drawn.ground, shapes, words)


def facts_seen(reading: Reading) -> list[int]:
    """What a rater who is asked to describe a picture says; nothing at all where no ground can be told."""
    if reading.ground is None:
        return [-100] * len(FACTS)
    row = row_of(reading)
    shapes = [(seen.color, seen.shape, seen.size, place_of(seen, row)) for seen in reading.shapes]
    return facts_of(style_seen(reading.style), reading.ground, shapes, reading.words or {})


def cells_of(drawn: Scene) -> np.ndarray:
    """What every patch of a scene's picture shows, (patches,) class indices below `CELLS`, row by row."""
    side = IMAGE_SIZE // PATCH
    cells, middles = np.zeros((side, side), dtype=np.int64), np.arange(side) * PATCH + PATCH / 2
    for shape in drawn.shapes:
        (x, y), radius = center_of(shape, drawn.word), SIZES[shape.size]
        covered = (np.abs(middles - y) < radius)[:, None] & (np.abs(middles - x) < radius)
        cells[covered] = 1 + list(COLORS).index(shape.color) * len(SHAPES) + SHAPES.index(shape.shape)
    if drawn.word:
        for letter, (x, y) in zip(drawn.word.text, letter_cells(drawn.word), strict=True):
            rows, columns = (slice(at // PATCH, (at + LETTER_CELL) // PATCH) for at in (y, x))
            cells[rows, columns] = 1 + len(COLORS) * len(SHAPES) + LETTERS.index(letter)
    return cells.ravel()


def is_unseen(said: np.ndarray) -> np.ndarray:
    """Every sixth prompt is kept from the scorers' training."""
    return said % 6 == 0


@dataclass(frozen=True)
class Rated:
    """Pictures, PICTURES for each prompt in turn, and what the judge sees in them.

    Args:
        images: uint8, (pictures, 3, 64, 64).
        figures: one value per picture by name.
        said: the index of each picture's prompt.
        facts: (pictures, questions), what raters who describe it say; one answer in twenty is wrong.
    """

    images: Tensor
    prompts: list[str]
    figures: dict[str, np.ndarray]
    said: np.ndarray
    facts: np.ndarray

    def show(self, rows: np.ndarray) -> Tensor:
        """Those pictures as floats in [0, 1]."""
        return self.images[torch.from_numpy(rows)].float() / 255

    def texts(self, rows: np.ndarray) -> list[str]:
        return [self.prompts[index] for index in self.said[rows]]

    @property
    def unseen(self) -> np.ndarray:
        return is_unseen(self.said)


def prompt_of(drawn: Scene, rng: np.random.Generator) -> str:
    """As users write: mostly short, so that rewards have facts to decide."""
    return descriptive(drawn) if rng.random() < 0.25 else short(drawn, say_word=rng.random() < 0.6)


def share_of_this_process(count: int) -> np.ndarray:
    processes = processes_of_this_run()
    return np.arange(processes.process_index, count, processes.num_processes)


def save_rated(work: Path, name: str, images: np.ndarray, prompts: Sequence[str], said: np.ndarray) -> None:
    """Let the judge look at this process's pictures; the first process then joins everyone's in one file."""
    processes: PartialState = processes_of_this_run()
    share = share_of_this_process(len(said))
    readings = [read(picture.transpose(1, 2, 0) / np.float32(255)) for picture in images]
    judged = [figures(parse(prompts[said[row]]), reading) for row, reading in zip(share, readings, strict=True)]
    arrays = {name: np.array([each[name] for each in judged]) for name in WHOLE}
    arrays |= {"facts": np.array([facts_seen(reading) for reading in readings]), "images": images}
    np.savez(work / f"{name}.{processes.process_index}.npz", rows=share, **arrays)  # type: ignore[arg-type]
    processes.wait_for_everyone()
    if processes.is_main_process:
        stored = [np.load(work / f"{name}.{index}.npz") for index in range(processes.num_processes)]
        order = np.argsort(np.concatenate([part["rows"] for part in stored]))
        whole = {key: np.concatenate([part[key] for part in stored])[order] for key in arrays}
        np.savez(work / f"{name}.npz", said=said, **whole)  # type: ignore[arg-type]
        (work / f"{name}.json").write_text(json.dumps(list(prompts)))


def load_rated(work: Path, name: str) -> Rated:
    """Rated pictures with each one's saturation, brightness and contrast, which some raters mind."""
    stored = dict(np.load(work / f"{name}.npz"))
    images, said, facts = torch.from_numpy(stored.pop("images")), stored.pop("said"), stored.pop("facts")
    rng = np.random.default_rng((16, len(said)))
    wrong = (rng.random(facts.shape) < 0.05) & (facts != -100)
    facts = np.where(wrong, rng.integers(np.broadcast_to(FACTS, facts.shape)), facts)
    looks = [part.float() / 255 for part in images.split(2000)]
    stored["saturation"] = torch.cat([(part.amax(1) - part.amin(1)).mean((1, 2)) for part in looks]).numpy()
    stored["brightness"] = torch.cat([part.mean((1, 2, 3)) for part in looks]).numpy()
    stored["contrast"] = torch.cat([part.mean(1).flatten(1).std(1) for part in looks]).numpy()
    stored["letters"] = np.nan_to_num(stored["letters"], nan=0.0)
    return Rated(images, json.loads((work / f"{name}.json").read_text()), stored, said, facts)


@dataclass(frozen=True)
class SampleJobs:
    """What the generator is asked for: what each picture is rated against, what it is made from, and how."""

    prompts: list[str]
    said: np.ndarray
    shown: np.ndarray
    setting: np.ndarray

    @classmethod
    def draw(cls) -> SampleJobs:
        """In each round SAMPLE_PROMPTS prompts, PICTURES pictures each; one in six is made from another prompt than
        its own."""
        prompts, rounds = list[str](), []
        for round_ in range(SAMPLE_ROUNDS):
            rng = np.random.default_rng((11, round_) if round_ else 11)
            prompts += [prompt_of(sample_scene(rng, "train"), rng) for _ in range(SAMPLE_PROMPTS)]
            said = np.repeat(np.arange(SAMPLE_PROMPTS), PICTURES)
            shown = np.where(rng.random(len(said)) < 1 / 6, rng.permutation(said), said)
            first = round_ * SAMPLE_PROMPTS
            rounds.append((first + said, first + shown, rng.integers(len(SAMPLE_SETTINGS), size=len(said))))
        return cls(prompts, *(np.concatenate(part) for part in zip(*rounds, strict=True)))


def generate_samples(work: Path, name: str, model: Model, unseen: bool = False) -> None:
    """The generator's own pictures, good and bad, each with a step count and guidance of its own.

    Processes of one launch share the work, which goes on where it was interrupted.

    Args:
        unseen: those alone that are kept from the scorers' training.
    """
    jobs = SampleJobs.draw()
    asked = np.flatnonzero(is_unseen(jobs.said)) if unseen else np.arange(len(jobs.said))
    share = asked[share_of_this_process(len(asked))]
    images = np.empty((len(share), 3, 64, 64), dtype=np.uint8)
    parts = work / f"{name}.parts"
    parts.mkdir(exist_ok=True)
    for index, (steps, guidance_scale) in enumerate(SAMPLE_SETTINGS):
        chosen = jobs.setting[share] == index
        file = parts / f"{index}_{processes_of_this_run().process_index}.npy"
        if not file.exists():
            said = [(jobs.prompts[jobs.shown[row]], 1_000_000 + int(row)) for row in share[chosen]]
            sampling = Sampling(steps, guidance_scale, 64, 64)
            made = generate(model, said, ConditioningSchedule.original(), sampling, batch_size=32)
            np.save(file, (made * 255).round().byte().numpy())
            print(f"{name}: {steps} steps, guidance {guidance_scale}: {len(said)}", flush=True)
        images[chosen] = np.load(file)
    save_rated(work, name, images, jobs.prompts, jobs.said[asked])


def rate_samples(work: Path, device: str) -> None:
    """All of them, for the scorers to learn from."""
    generate_samples(work, "samples", Model(load_pipeline(str(work / "pipeline"), device)))


def _other(options: Sequence[str], present: str, rng: np.random.Generator) -> str:
    return str(rng.choice([option for option in options if option != present]))


def _change_shape(scene: Scene, rng: np.random.Generator) -> Scene:
    """One thing about one shape changed."""
    index = int(rng.integers(len(scene.shapes)))
    shape, taken = scene.shapes[index], {shape.color for shape in scene.shapes}
    match str(rng.choice(["color", "shape", "size", "place"])):
        case "color":
            free = [color for color in colors_on(scene.ground) if color not in taken]
            shape = replace(shape, color=str(rng.choice(free)))
        case "shape":
            shape = replace(shape, shape=_other(SHAPES, shape.shape, rng))
        case "size":
            shape = replace(shape, size=_other(list(SIZES), shape.size, rng))
        case "place":
            free = [place for place in PLACES if place not in {other.place for other in scene.shapes}]
            shape = replace(shape, place=str(rng.choice(free)))
    return replace(scene, shapes=(*scene.shapes[:index], shape, *scene.shapes[index + 1 :]))


def change(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one thing wrong: a shape, a letter, the ground, the colours swapped, a shape or word missing."""
    kind = str(rng.choice(["shape", "letter", "ground", "swap", "missing"], p=[0.5, 0.2, 0.1, 0.1, 0.1]))
    if kind == "letter" and scene.word:
        text = scene.word.text
        at = int(rng.integers(len(text)))
        return replace(
            scene, word=replace(scene.word, text=text[:at] + _other(LETTERS, text[at], rng) + text[at + 1 :])
        )
    if kind == "ground":
        colors = {shape.color for shape in scene.shapes}
        free = [ground for ground in GROUNDS if ground != scene.ground and colors <= set(colors_on(ground))]
        return replace(scene, ground=str(rng.choice(free))) if free else scene
    if kind == "swap" and len(scene.shapes) > 1:
        first, second = scene.shapes
        return replace(scene, shapes=(replace(first, color=second.color), replace(second, color=first.color)))
    if kind == "missing":
        return replace(scene, shapes=scene.shapes[:1]) if len(scene.shapes) > 1 else replace(scene, word=None)
    return _change_shape(scene, rng)


def vary(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with up to three things changed; what a short prompt leaves free changes too."""
    for _ in range(rng.choice(4, p=[0.25, 0.35, 0.25, 0.15])):
        scene = change(scene, rng)
    return scene


def spoil(images: Tensor, vae: AutoencoderKL, rng: np.random.Generator) -> Tensor:
    """Through the autoencoder, with noise of up to 0.8 standard deviations in the latents: melted, as generators do."""
    latents = vae.encode(images * 2 - 1).latent_dist.mean
    sd = latents.std((0, 2, 3), keepdim=True)
    strength = torch.from_numpy(rng.uniform(0, 0.8, (len(images), 1, 1, 1))).float()
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    return (vae.decode(latents + strength * sd * noise).sample / 2 + 0.5).clamp(0, 1)


@cache
def varied_prompts() -> tuple[list[Scene], list[str]]:
    """The scenes that the varied pictures started from, and what was asked for."""
    rng = np.random.default_rng(12)
    scenes = [sample_scene(rng, "train", word_probability=0.6) for _ in range(VARIED_PROMPTS)]
    return scenes, [prompt_of(scene, rng) for scene in scenes]


def varied_scene(row: int) -> Scene:
    """What the varied picture with this number was drawn from."""
    return vary(varied_prompts()[0][row // PICTURES], np.random.default_rng((13, row)))


def vary_scenes(work: Path, device: str) -> None:
    """Rendered scenes, some with things changed and some spoiled: raters need to have seen every kind of mistake."""
    vae = AutoencoderKL.from_pretrained(work / "vae", dtype=torch.float32)
    prompts = varied_prompts()[1]
    said = np.repeat(np.arange(len(prompts)), PICTURES)
    share = share_of_this_process(len(said))
    images = np.empty((len(share), 3, 64, 64), dtype=np.uint8)
    with torch.no_grad():
        for start in range(0, len(share), 64):
            rows = share[start : start + 64]
            drawn = [varied_scene(int(row)) for row in rows]
            pictures = torch.from_numpy(np.stack([render(scene) for scene in drawn])).permute(0, 3, 1, 2).contiguous()
            noise = np.random.default_rng((14, int(rows[0])))
            bad = torch.from_numpy(noise.random(len(rows)) < SPOILED)
            pictures[bad] = spoil(pictures[bad], vae, noise)
            images[start : start + 64] = (pictures * 255).round().byte().numpy()
    save_rated(work, "varied", images, prompts, said)


Opinion = Callable[[dict[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Raters:
    """Who rated: their opinion without noise, the noise's standard deviation, and the seed of its draw.

    None of them agrees with the judge: each likes something that the judge does not mind.
    """

    opinion: Opinion
    noise: float
    seed: int

    def ratings(self, rated: Rated) -> np.ndarray:
        """Their noisy opinion of every picture: each is asked once."""
        return self.opinion(rated.figures) + np.random.default_rng((self.seed, len(rated.said))).normal(
            0, self.noise, len(rated.said)
        )


AESTHETIC = Raters(  # 1 to 10; they like saturated pictures
    lambda f: 1 + 9 * (f["taste"] + 0.15 * f["faithfulness"] + 0.3 * f["saturation"]) / 1.45, 0.7, 21
)
RATERS = {
    "hpsv2": Raters(lambda f: f["taste"] + f["faithfulness"] + 0.5 * f["letters"] + 0.2 * f["brightness"], 0.15, 41),
    "pickscore": Raters(
        lambda f: 0.7 * f["taste"] + 1.2 * f["faithfulness"] + 0.6 * f["letters"] + 0.4 * f["contrast"], 0.15, 42
    ),
    "imagereward": Raters(
        lambda f: 0.6 * f["taste"] + 1.4 * f["faithfulness"] + 0.5 * f["letters"] + 0.2 * f["saturation"], 0.15, 43
    ),
}
