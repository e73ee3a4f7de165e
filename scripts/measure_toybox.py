"""Measures the toybox and prints its table: `python scripts/train_toybox.py report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import torch
from diffusers import AutoencoderKL
from editions import Apart
from results import Column, show
from scipy.stats import spearmanr
from torch import Tensor
from toybox_ratings import RATERS, Rated

from textcraftor.evaluation.evaluate import diversity
from textcraftor.inference.generate import Sampling, generate, grid
from textcraftor.models.model import Model
from textcraftor.rewards.base import Reward
from textcraftor.rewards.reading import Recogniser
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.toybox.world2.captions import descriptive
from textcraftor.toybox.world2.judge import Judge, check, letters, taste
from textcraftor.toybox.world2.reading import Reading, read
from textcraftor.toybox.world2.render import render
from textcraftor.toybox.world2.scenes import (
    GROUNDS,
    LETTER_CELL,
    LETTERS,
    ROWS,
    SHAPES,
    SIZES,
    Scene,
    Shape,
    colors_on,
    sample_scene,
)
from textcraftor.toybox.world2.styles import Style
from textcraftor.toybox.world2.wanted import Wanted, parse

Figures = dict[str, float]


def as_batch(scenes: Sequence[Scene]) -> Tensor:
    """Rendered scenes, (batch, 3, 64, 64) in [0, 1]."""
    return torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2)


def _shapes_held(wanted: Wanted, reading: Reading) -> list[bool]:
    per_shape = [held for name, held in check(wanted, reading) if name in ("color", "shape", "size", "place")]
    return [all(per_shape[i : i + 4]) for i in range(0, len(per_shape), 4)]


def read_back(scenes: Sequence[Scene], images: Tensor) -> tuple[float, float]:
    """The share of objects read with every fact right, and of letters read right."""
    readings = [read(picture) for picture in images.permute(0, 2, 3, 1).numpy()]
    wanted = [parse(descriptive(scene)) for scene in scenes]
    pairs = list(zip(wanted, readings, strict=True))
    objects = [held for want, reading in pairs for held in _shapes_held(want, reading)]
    return float(np.mean(objects)), float(np.nanmean([letters(want, reading) for want, reading in pairs]))


def wrong_scenes(scene: Scene, rng: np.random.Generator) -> dict[str, Scene]:
    """The scene with one thing wrong: its colours swapped, another shape, or another letter in its word."""
    first, rest = scene.shapes[0], scene.shapes[1:]
    other = str(rng.choice([shape for shape in SHAPES if shape != first.shape]))
    wrong = {"shape": replace(scene, shapes=(replace(first, shape=other), *rest))}
    if rest:
        swapped = (replace(first, color=rest[0].color), replace(rest[0], color=first.color))
        wrong["colors"] = replace(scene, shapes=swapped)
    if scene.word:
        text = scene.word.text
        place = int(rng.integers(len(text)))
        letter = str(rng.choice([letter for letter in LETTERS if letter != text[place]]))
        wrong["word"] = replace(scene, word=replace(scene.word, text=text[:place] + letter + text[place + 1 :]))
    return wrong


def accepted(scene: Scene, picture: np.ndarray) -> bool:
    """Whether the judge finds everything that the scene's caption says."""
    wanted, reading = parse(descriptive(scene)), read(picture)
    return all(held for _, held in check(wanted, reading)) and (not wanted.word or letters(wanted, reading) == 1)


def wrong_accepted(scenes: Sequence[Scene], rng: np.random.Generator) -> dict[str, list[bool]]:
    """For each kind of wrong picture, whether the judge took it for the scene that it was made from."""
    found: dict[str, list[bool]] = {}
    for scene in scenes:
        for kind, wrong in wrong_scenes(scene, rng).items():
            found.setdefault(kind, []).append(accepted(scene, render(wrong)))
    return found


def best_taste(wanted: Wanted, rng: np.random.Generator, tries: int = 60) -> float:
    """The highest taste found among rendered scenes that show what a prompt states."""
    best = 0.0
    for _ in range(tries):
        ground = wanted.ground or str(rng.choice(list(GROUNDS)))
        if any(shape.color not in colors_on(ground) for shape in wanted.shapes):
            continue
        sides = [("left", "right"), ("right", "left")][int(rng.integers(2))]
        shapes = []
        for index, want in enumerate(wanted.shapes):
            free = "center" if len(wanted.shapes) == 1 else sides[index]
            shapes.append(Shape(want.color, want.shape, want.size or str(rng.choice(list(SIZES))), want.place or free))
        style = Style(ground="gradient", shaded=True, shadow=True)
        best = max(best, taste(read(render(Scene(ground, tuple(shapes), style=style))))["taste"])
    return best


def rebuild(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Pictures through the autoencoder and back."""
    with torch.no_grad():
        parts = [(vae.decode(vae.encode(part * 2 - 1).latent_dist.mean).sample / 2 + 0.5) for part in images.split(50)]
    return torch.cat(parts).clamp(0, 1)


def generator_figures(model: Model, prompts: Sequence[str], seeds: Sequence[int]) -> Figures:
    """What the judge says of an edition's pictures, how they differ over seeds, and the taste that it could reach.

    No two pictures have the same noise: the noise decides about style nearly alone.
    """
    jobs = [(prompt, len(seeds) * number + seed) for number, prompt in enumerate(prompts) for seed in seeds]
    images = generate(model, jobs, ConditioningSchedule.original(), Sampling(15, 1.5, 64, 64), batch_size=32)
    figures = Judge(parts=True)(images, [prompt for prompt, _ in jobs])
    rng = np.random.default_rng(52)
    best = np.array([best_taste(parse(prompt), rng) for prompt in prompts])
    base = figures["taste"].reshape(len(prompts), len(seeds)).mean(1)
    pixels = (images.clamp(0, 1) * 255).round().byte().unflatten(0, (len(prompts), len(seeds)))
    return {name: float(np.nanmean(values)) for name, values in figures.items() if not np.isnan(values).all()} | {
        "diversity over seeds": float(np.mean([diversity(group) for group in pixels])),
        "best taste attainable per prompt, mean": float(best.mean()),
        "share of it that is reached": float((base / best).mean()),
    }


def swap_figures(model: Model, prompts: Sequence[str], seeds: Sequence[int]) -> Figures:
    """Faithfulness where one of several text encoders reads the next prompt instead: how much each one matters."""
    jobs, following = grid(prompts, seeds), dict(zip(prompts, [*prompts[1:], prompts[0]], strict=True))
    figures: Figures = {}
    for part in model.text_encoders if len(model.text_encoders) > 1 else ():

        def read(texts: Sequence[str], part: str = part) -> list[list[str]]:
            swapped = [following.get(text, text) for text in texts]
            return [swapped if name == part else list(texts) for name in model.text_encoders]

        model.readers[part] = Apart(model.pipeline, read)
        schedule = ConditioningSchedule(0, {part: 1.0}, {part: 1.0})
        images = generate(model, jobs, schedule, Sampling(15, 1.5, 64, 64), batch_size=32)
        found = Judge()(images, [prompt for prompt, _ in jobs])["faithfulness"]
        figures[f"faithfulness, {part} reading another prompt"] = float(np.nanmean(found))
        del model.readers[part]
    return figures


@torch.no_grad()
def score_all(reward: Reward, images: Tensor, prompts: Sequence[str], size: int = 128) -> np.ndarray:
    """A scorer's scores of many pictures."""
    parts = [
        reward(images[start : start + size], prompts[start : start + size]) for start in range(0, len(images), size)
    ]
    return torch.cat(parts).numpy()


def pair_accuracy(said: np.ndarray, truth: np.ndarray, guess: np.ndarray) -> float:
    """The share of pairs of pictures of one prompt that `guess` puts in `truth`'s order."""
    right = [
        (truth[i] > truth[j]) == (guess[i] > guess[j])
        for group in (np.flatnonzero(said == prompt) for prompt in np.unique(said))
        for i in group
        for j in group
        if i < j
    ]
    return float(np.mean(right))


def against_mean(said: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each picture's value less the mean of its prompt's pictures."""
    _, group = np.unique(said, return_inverse=True)
    return values - (np.bincount(group, values) / np.bincount(group))[group]


def show_scorers(scorers: dict[str, Reward], rated: Rated) -> None:
    """Each scorer on the samples kept from its training; each preference model beside its own raters."""
    seen = np.flatnonzero(rated.unseen)
    images, prompts, said = rated.show(seen), rated.texts(seen), rated.said[seen]
    figures = {name: values[seen] for name, values in rated.figures.items()}
    rows = []
    for name, scorer in scorers.items():
        scores, row = score_all(scorer, images, prompts), [name]
        for against in ("taste", "faithfulness"):
            row.append(spearmanr(scores, figures[against]).statistic)
            row.append(spearmanr(*(against_mean(said, values) for values in (scores, figures[against]))).statistic)
        if name in RATERS:
            raters = RATERS[name]
            truth, noisy = raters.opinion(figures), raters.ratings(rated)[seen]
            row += [pair_accuracy(said, truth, scores), pair_accuracy(said, truth, noisy)]
        else:
            row += [None, None]
        rows.append([*row, scores.mean(), scores.std()])
    columns: list[Column] = [
        f"{len(seen)} unseen samples",
        ("taste, rank correlation", ".2f"),
        ("among one prompt's", ".2f"),
    ]
    columns += [("faithfulness", ".2f"), ("among one prompt's", ".2f"), ("pairs in its raters' order", ".3f")]
    columns += [("the raters themselves", ".3f"), ("mean score", ".3f"), ("its sd", ".3f")]
    show("toybox", "scorers", columns, rows, store=True)


def show_recogniser(recogniser: Recogniser, vae: AutoencoderKL, count: int = 500) -> None:
    """The share of letters that it reads in their place, in rows of held-out scenes, half of the words unseen."""
    rng = np.random.default_rng(53)
    scenes = [sample_scene(rng, "validation", word_probability=1.0) for _ in range(count)]
    images, rows = as_batch(scenes), []
    for name, pictures in (("rendered", images), ("reconstructed by the autoencoder", rebuild(vae, images))):
        words = [scene.word for scene in scenes if scene.word]
        lines = [
            picture[:, ROWS[word.row] : ROWS[word.row] + LETTER_CELL]
            for picture, word in zip(pictures, words, strict=True)
        ]
        with torch.no_grad():
            found = recogniser.read(recogniser.encode(recogniser.pixels(torch.stack(lines))))
        right = [a == b for word, text in zip(words, found, strict=True) for a, b in zip_longest(word.text, text)]
        rows.append([name, float(np.mean(right))])
    show("toybox", "recogniser", [f"{count} words", ("letters read in their place", ".3f")], rows, store=True)
