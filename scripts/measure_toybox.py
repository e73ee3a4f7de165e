"""Measures the toybox and prints its table: `python scripts/train_toybox.py report`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from scipy.stats import spearmanr
from torch import Tensor

from textcraftor.evaluation.evaluate import diversity
from textcraftor.inference.generate import Sampling, generate, grid
from textcraftor.models.stable_diffusion import StableDiffusion
from textcraftor.rewards.base import Reward
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.toybox.captions import descriptive
from textcraftor.toybox.judge import Judge, Wanted, check, letters, parse, read, taste
from textcraftor.toybox.render import render
from textcraftor.toybox.scenes import GROUNDS, LETTERS, SHAPES, SIZES, Scene, Shape, colors_on, sample_scene

Table = list[tuple[str, str]]


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def as_batch(scenes: Sequence[Scene]) -> Tensor:
    """Rendered scenes, (batch, 3, 64, 64) in [0, 1]."""
    return torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2)


def _shapes_held(prompt: str, picture: np.ndarray) -> list[bool]:
    wanted = parse(prompt)
    facts = check(wanted, read(picture))
    per_shape = [held for name, held in facts if name in ("color", "shape", "size", "place")]
    return [all(per_shape[i : i + 4]) for i in range(0, len(per_shape), 4)]


def read_back(scenes: Sequence[Scene], images: Tensor) -> tuple[float, float]:
    """The share of objects read with every fact right, and of letters read right."""
    pictures = images.permute(0, 2, 3, 1).numpy()
    prompts = [descriptive(scene) for scene in scenes]
    objects = [
        held for prompt, picture in zip(prompts, pictures, strict=True) for held in _shapes_held(prompt, picture)
    ]
    right = [letters(parse(prompt), read(picture)) for prompt, picture in zip(prompts, pictures, strict=True)]
    return float(np.mean(objects)), float(np.nanmean(right))


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
        best = max(best, taste(read(render(Scene(ground, tuple(shapes)))))["taste"])
    return best


def judge_figures(vae: AutoencoderKL, count: int = 500) -> Table:
    rng = np.random.default_rng(51)
    scenes = [sample_scene(rng, "validation") for _ in range(count)]
    images = as_batch(scenes)
    with torch.no_grad():
        parts = [(vae.decode(vae.encode(part * 2 - 1).latent_dist.mean).sample / 2 + 0.5) for part in images.split(50)]
    rebuilt = torch.cat(parts).clamp(0, 1)
    psnr = -10 * (rebuilt - images).pow(2).mean((1, 2, 3)).log10().mean()
    rows: Table = [("autoencoder, PSNR on held-out scenes", f"{psnr:.1f} dB")]
    for name, pictures in (("rendered scenes", images), ("VAE reconstructions", rebuilt)):
        objects, spelled = read_back(scenes, pictures)
        rows.append((f"judge: objects / letters read right, {name}", f"{percent(objects)} / {percent(spelled)}"))
    for kind, found in wrong_accepted(scenes, rng).items():
        rows.append((f"judge: wrong pictures accepted ({kind}, {len(found)} pictures)", percent(float(np.mean(found)))))
    return rows


def generator_figures(model: StableDiffusion, prompts: Sequence[str], seeds: Sequence[int]) -> Table:
    jobs = grid(prompts, seeds)
    images = generate(model, jobs, ConditioningSchedule.original(), Sampling(15, 3.0, 64, 64), batch_size=32)
    figures = Judge(parts=True)(images, [prompt for prompt, _ in jobs])
    rng = np.random.default_rng(52)
    best = np.array([best_taste(parse(prompt), rng) for prompt in prompts])
    base = figures["taste"].reshape(len(prompts), len(seeds)).mean(1)
    spread = np.mean([diversity(group) for group in images.unflatten(0, (len(prompts), len(seeds)))])
    rows: Table = [(f"base: {name}", f"{np.nanmean(values):.3f}") for name, values in figures.items()]
    rows.append(("base: diversity over seeds", f"{spread:.3f}"))
    rows.append(("best taste attainable per prompt, mean", f"{best.mean():.3f}"))
    rows.append(("share of it that the base reaches", percent(float((base / best).mean()))))
    return rows


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


def scorer_figures(
    scorers: dict[str, Reward],
    samples: tuple[Tensor, list[str], dict[str, np.ndarray]],
    unseen: np.ndarray,
    opinion: Callable[[dict[str, np.ndarray]], np.ndarray],
    noise: Callable[[int], float],
) -> Table:
    images, prompts, figures = samples
    rows_of = np.flatnonzero(unseen)
    figures = {name: values[rows_of] for name, values in figures.items()}
    images, prompts = images[torch.from_numpy(rows_of)], [prompts[row] for row in rows_of]
    rows: Table = [("scorers: unseen samples", str(len(rows_of)))]
    truth = opinion(figures)
    for name, scorer in scorers.items():
        scores = score_all(scorer, images, prompts)
        for against in ("taste", "faithfulness"):
            overall = spearmanr(scores, figures[against]).statistic
            own = [against_mean(figures["said"], values) for values in (scores, figures[against])]
            label = f"{name}: rank correlation with the judge's {against}, all / among one prompt's"
            rows.append((label, f"{overall:.2f} / {spearmanr(*own).statistic:.2f}"))
        accuracy = pair_accuracy(figures["said"], truth, scores)
        rows.append((f"{name}: pairs in the preference raters' noiseless order", percent(accuracy)))
        rows.append((f"{name}: mean and standard deviation of its score", f"{scores.mean():.3f}, {scores.std():.3f}"))
    noisy = truth + np.array([noise(int(row)) for row in rows_of])
    rows.append(
        (
            "noise ceiling: pairs that the raters themselves order so",
            percent(pair_accuracy(figures["said"], truth, noisy)),
        )
    )
    return rows


def print_table(rows: Table, seconds: dict[str, float], weights: Path) -> None:
    rows = [
        *rows,
        ("packed weights", f"{sum(f.stat().st_size for f in weights.rglob('*') if f.is_file()) / 1e6:.1f} MB"),
    ]
    rows += [(f"seconds: {stage}", f"{value:.0f}") for stage, value in seconds.items()]
    print("| figure | value |\n| --- | --- |")
    for name, value in rows:
        print(f"| {name} | {value} |")


def stage_seconds(work: Path) -> dict[str, float]:
    """The time that each finished stage took."""
    files = sorted(work.glob("*.done"), key=lambda path: path.stat().st_mtime)
    return {path.stem: json.loads(path.read_text())["seconds"] for path in files}
