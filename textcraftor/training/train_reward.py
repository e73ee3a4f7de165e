"""`textcraftor train-reward`: a reward from what people prefer, in the layout of a published scorer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from textcraftor.errors import UsageError
from textcraftor.evaluation.picture_sets import Key, PictureSet, read_sets
from textcraftor.evaluation.rating import Rating, Ratings, read_ratings
from textcraftor.evaluation.statistics import interval_text
from textcraftor.files.reading import open_picture
from textcraftor.files.writing import check_unfinished, finish, locked, replacing, replacing_folder, write_json, write_text
from textcraftor.models.loading import device_of
from textcraftor.rewards.aesthetic import Aesthetic
from textcraftor.rewards.clip import PickScore
from textcraftor.rewards.learned import CLIP, HEAD, RECORD, embedder
from textcraftor.rewards.preprocessing import from_pil
from textcraftor.training.fitting import FitSettings, fit
from textcraftor.training.preference_fit import (
    Fit,
    Scores,
    Votes,
    accuracy,
    cross_validated,
    fit_linear,
    learning_curve,
)
from textcraftor.training.processes import say

FEATURES = "features.safetensors"
LEAST_VOTES = 10


@dataclass(frozen=True)
class Preferences:
    """What people chose.

    Args:
        files: every rated picture.
        texts: the prompt of each picture.
    """

    files: Sequence[Path]
    texts: Sequence[str]
    votes: Votes


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot work before any model is loaded."""
    preferences_of(config)
    device_of(config.device)
    check_unfinished(folder, "a reward")


def preferences_of(config: DictConfig) -> Preferences:
    """The votes of a configuration's files on its models' pictures.

    Raises:
        UsageError: no file, ratings of other pictures than those of the models, an unknown question or rater, too few
            votes.
    """
    if not config.files:
        raise UsageError("give the files that textcraftor rate wrote: textcraftor train-reward ratings/ratings.jsonl")
    sets = read_sets(config.models)
    rows = {place: row for row, place in enumerate((model, key) for model, own in sets.items() for key in own.files)}
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(key[0] for _, key in rows))}
    votes = []
    for file in config.files:
        place = Path(file).expanduser()
        answers = answers_of(place, read_ratings(place), sets, config)
        votes += [(rows[one], rows[other], outcome, prompts[one[1][0]]) for one, other, outcome in answers]
    if len(votes) < LEAST_VOTES:
        raise UsageError(f"{len(votes)} choices are too few to learn from: rate {LEAST_VOTES} pairs at least")
    columns = [np.array(column) for column in zip(*votes, strict=True)]
    files = [sets[model].files[key] for model, key in rows]
    return Preferences(files, [key[0] for _, key in rows], Votes(*columns))


Picture = tuple[str, Key]  # a model and a prompt with a seed


def answers_of(
    place: Path, ratings: Ratings, sets: Mapping[str, PictureSet], config: DictConfig
) -> list[tuple[Picture, Picture, float]]:
    """Choices between two pictures, and what each says of the first one; grades of one rater on pictures of one prompt
    are choices too."""
    for name, fingerprint in ratings.models.items():
        if name not in sets:
            raise UsageError(f"{place} rates pictures of {name}: give their folder, models.{name}=")
        if sets[name].fingerprint != fingerprint:
            raise UsageError(f"{place} rates other pictures than models.{name}={config.models[name]} holds: give those")
    question = config.question or next(iter(ratings.questions), "")
    if question not in ratings.questions:
        raise UsageError(f"question={question}: {place} asks {', '.join(ratings.questions)}")
    standing = ratings.standing(question)
    for rater in config.raters or ():
        if rater not in standing:
            raise UsageError(f"raters: {rater} did not answer {question} in {place}; {', '.join(standing)} did")
    chosen = [own for rater, own in standing.items() if rater in (config.raters or standing)]
    return [answer for own in chosen for answer in choices(list(own.values()))]


def choices(ratings: Sequence[Rating]) -> list[tuple[Picture, Picture, float]]:
    """One rater's choices between two pictures."""
    found = []
    graded: dict[str, list[tuple[Picture, float]]] = {}
    for rating in ratings:
        pictures = [(model, (rating.prompt, rating.seed)) for model in rating.unit.models]
        if len(pictures) == 1:
            graded.setdefault(rating.prompt, []).append((pictures[0], rating.score))
        elif rating.answer != SKIP:
            found.append((pictures[0], pictures[1], rating.score))
    for own in graded.values():
        for (one, grade), (other, second) in itertools.combinations(own, 2):
            found.append((one, other, 0.5 + 0.5 * float(np.sign(grade - second))))
    return found


def run(config: DictConfig, folder: Path) -> str:
    """Write a reward that `rewards=mine rewards.mine.path=` takes, and how well it knows what people prefer on prompts
    that it did not learn from."""
    check(config, folder)
    with locked(folder):
        return make(config, folder)


def make(config: DictConfig, folder: Path) -> str:
    """The same, once nobody else writes there."""
    preferences, device = preferences_of(config), device_of(config.device)
    votes = preferences.votes
    if config.layout == "aesthetic":
        features = features_of(config.clip, preferences.files, folder, device)
        learn: Fit = lambda some: features @ fit_linear(features, some, config.seed)  # noqa: E731
    else:
        learn = partial(preference_scores, config, preferences, folder, device)
    known = accuracy(cross_validated(learn, votes, config.folds, config.seed), votes)
    curve = learning_curve(learn, votes, config.folds, config.seed) if config.layout == "aesthetic" else []
    record = {"format": 1, "layout": config.layout, "clip": str(config.clip)}
    if config.layout == "aesthetic":
        save_head(features, fit_linear(features, votes, config.seed), folder)
    else:
        save_clip(config, preferences, folder, device)
    chance = not known["low"] > 0.5
    summary = {"votes": len(votes), "ties": int((votes.outcomes == 0.5).sum()), "prompts": known["n"], "accuracy": known}
    summary |= {"no_better_than_chance": chance, "curve": [{"votes": most, **point} for most, point in curve]}
    write_json(folder / "summary.json", summary)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    write_json(folder / RECORD, record)
    finish(folder, "train-reward")
    if chance:
        say(
            f"this reward is no better than chance on other prompts ({known['mean']:.2f}, 95 % interval "
            f"{interval_text(known, 2)} over {known['n']} prompts): rate more pairs before you train on it"
        )
    lines = [f"{most} votes: {point['mean']:.3f} {interval_text(point, 3)}" for most, point in curve]
    told = f"agrees with {known['mean']:.3f} {interval_text(known, 3)} of choices on prompts that it did not learn from"
    return "\n".join([f"wrote {folder}: {told}", *lines, f"textcraftor train rewards=mine rewards.mine.path={folder}"])


@torch.no_grad()
def features_of(clip: str, files: Sequence[Path], folder: Path, device: str) -> np.ndarray:
    """Every picture's embedding, of norm 1; kept in the folder, so that an interrupted command has them."""
    stored = folder / FEATURES
    if not stored.exists():
        eyes = embedder(clip).to(device)
        rows = [eyes.embed_pixels(eyes.pixels(picture_of(file).to(device))).cpu() for file in tqdm(files, desc="looking")]
        with replacing(stored) as place:
            save_file({"features": torch.cat(rows).float().contiguous()}, place)
    return load_file(stored)["features"].double().numpy()


def picture_of(file: Path) -> Tensor:
    """(1, 3, height, width) in [0, 1]."""
    with open_picture(file) as picture:
        return from_pil(picture)[None]


def save_head(features: np.ndarray, weights: np.ndarray, folder: Path) -> None:
    """A linear head in LAION's first layout, whose scores of the rated pictures have mean 0 and standard deviation 1."""
    scores = features @ weights
    spread = max(float(scores.std()), 1e-12)
    head = {
        "weight": torch.from_numpy(weights / spread).float()[None],
        "bias": torch.tensor([-scores.mean() / spread]).float(),
    }
    with replacing(folder / HEAD) as place:
        save_file(head, place)


def fitted_preference(config: DictConfig, preferences: Preferences, votes: Votes, folder: Path, device: str) -> PickScore:
    """A CLIP whose towers learn by LoRA which of two pictures wins (Kirstain et al. 2023, eq. 3: ties count half)."""
    torch.manual_seed(config.seed)
    scorer = PickScore.load(config.clip)
    lora = LoraConfig(r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=["q_proj", "v_proj"])
    learning: Any = get_peft_model(scorer.clip, lora).to(device)
    scorer.clip = learning
    scorer.texts = scorer.encode_text  # not remembered: its tower learns

    def loss_of(step: int) -> dict[str, Tensor]:
        rows = np.random.default_rng((config.seed, step)).choice(len(votes), min(config.training.batch_size, len(votes)))
        sides = [
            scorer(torch.cat([picture_of(preferences.files[row]) for row in side[rows]]).to(device), [preferences.texts[row] for row in side[rows]])
            for side in (votes.first, votes.second)
        ]
        outcomes = torch.from_numpy(votes.outcomes[rows]).to(sides[0])
        return {"choice": nn.functional.binary_cross_entropy_with_logits(sides[0] - sides[1], outcomes)}

    settings = FitSettings(config.training.steps, config.training.lr, warmup=config.training.warmup)
    fit("towers", learning, loss_of, settings, folder)
    scorer.clip = learning.merge_and_unload()
    return scorer
