"""What the toybox's scorers start from: a CLIP that can name everything in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from editions import fast_dtype
from torch import Tensor, nn
from toybox_ratings import (
    AESTHETIC,
    CELLS,
    FACTS,
    Rated,
    cells_of,
    facts_of_scene,
    load_rated,
    prompt_of,
    scene,
    varied_scene,
)
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from textcraftor.rewards.clip import ClipSimilarity
from textcraftor.toybox.world2.scenes import Scene
from textcraftor.training.fitting import FitSettings, fit
from textcraftor.training.processes import processes_of_this_run

ATTENTION = {"attn_implementation": "eager"}  # on CPUs its backward pass is faster than the fused one's
EMBEDDING = 256
EYES_SHARES = (0.25, 0.375, 0.375)  # of each batch: rendered scenes, varied ones, the generator's own pictures
AESTHETIC_MEAN = 5.4  # of the raters' 1 to 10


@cache
def rated_pictures(work: Path) -> tuple[Rated, Rated]:
    """The generator's pictures and the varied scenes."""
    return load_rated(work, "samples"), load_rated(work, "varied")


def shifted(images: Tensor, rng: np.random.Generator, by: int = 2) -> Tensor:
    """Each picture moved by up to `by` pixels: changes no opinion of it, and hinders learning pictures by heart."""
    padded = nn.functional.pad(images, (by,) * 4, mode="replicate")
    size, offsets = images.shape[-1], rng.integers(2 * by + 1, size=(len(images), 2))
    return torch.stack(
        [image[:, y : y + size, x : x + size] for image, (y, x) in zip(padded, offsets.tolist(), strict=True)]
    )


def load(pictures: np.ndarray, rows: np.ndarray) -> Tensor:
    """uint8 (batch, 64, 64, 3) to float (batch, 3, 64, 64) in [0, 1]."""
    return torch.from_numpy(pictures[rows]).permute(0, 3, 1, 2).float() / 255


class Looker(nn.Module):
    """A model with linear readers that name everything in a scene: all of it from the picture's embedding, and from
    each patch what stands there. Without the latter a tower does not find out where letters and shapes stand."""

    def __init__(self, model: nn.Module, width: int, patch_width: int) -> None:
        super().__init__()
        self.model, self.reader, self.cells = model, nn.Linear(width, sum(FACTS)), nn.Linear(patch_width, CELLS)
        self.aesthetic = nn.Linear(width, 1)

    def name(self, embeds: Tensor, facts: np.ndarray) -> Tensor:
        """Mean cross-entropy over the questions; embeds (batch, features), facts (batch, questions)."""
        known = torch.from_numpy(facts).to(embeds.device)
        groups = self.reader(embeds).split(FACTS, -1)
        losses = [nn.functional.cross_entropy(group, known[:, i]) for i, group in enumerate(groups)]
        return torch.stack([loss for loss in losses if loss.isfinite()]).mean()

    def point(self, patches: Tensor, drawn: Sequence[Scene]) -> Tensor:
        """Cross-entropy of what each patch shows; patches (batch, patches, features) of a tower's layer."""
        cells = torch.from_numpy(np.stack([cells_of(one) for one in drawn])).to(patches.device)
        return nn.functional.cross_entropy(self.cells(patches).flatten(0, 1), cells.flatten())

    def rate(self, embeds: Tensor, ratings: Tensor) -> Tensor:
        """Mean squared error of the aesthetic raters' opinion, read from embeddings (batch, features)."""
        return nn.functional.mse_loss(self.aesthetic(embeds)[:, 0], ratings.to(embeds) - AESTHETIC_MEAN)


def look(clip: CLIPModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's picture embeddings, and its patches before the last layer, which alone carries them to the embedding."""
    seen = clip.vision_model(pixels, output_hidden_states=True)
    return clip.visual_projection(seen.pooler_output), seen.hidden_states[-2][:, 1:]


def new_looker(clip: CLIPModel) -> Looker:
    return Looker(clip, EMBEDDING, clip.config.vision_config.hidden_size)


def train_eyes(work: Path, device: str, steps: int = 7000, batch: int = 128) -> None:
    """What scorers start from: the toy CLIP, taught to name all that a picture shows, spoiled ones among them.

    Contrastive training alone leaves shapes and letters vague, and choices between pictures teach them slowly.
    """
    rendered, (samples, varied) = np.load(work / "scenes.npy", mmap_mode="r"), rated_pictures(work)
    toy, spelling = CLIPModel.from_pretrained(work / "clip"), CLIPTextModel.from_pretrained(work / "spelling")
    toy.text_model.load_state_dict(spelling.state_dict())
    torch.manual_seed(0)
    sizes = {"projection_dim": EMBEDDING}
    config = CLIPConfig(
        text_config=toy.config.text_config.to_dict() | sizes,
        vision_config=toy.config.vision_config.to_dict() | sizes,
        **sizes,
    )
    clip = CLIPModel._from_config(config, **ATTENTION)
    clip.text_model.load_state_dict(toy.text_model.state_dict())
    clip.vision_model.load_state_dict(toy.vision_model.state_dict())
    scorer = ClipSimilarity(clip, CLIPTokenizer.from_pretrained(work / "clip"))
    looker = new_looker(clip).to(device).requires_grad_(True).train()
    processes = processes_of_this_run()
    parts = [round(share * batch / processes.num_processes) for share in EYES_SHARES]
    free = np.flatnonzero(~samples.unseen)
    ratings = [AESTHETIC.ratings(rated) for rated in (samples, varied)]

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((81, step, processes.process_index))
        fresh, rows, own = map(rng.choice, (len(rendered), len(varied.said), free), parts)
        fresh.sort()
        images = shifted(torch.cat([load(rendered, fresh), varied.show(rows), samples.show(own)]), rng, by=1)
        shown = [scene(int(index)) for index in fresh]
        facts = np.concatenate([list(map(facts_of_scene, shown)), varied.facts[rows], samples.facts[own]])
        opinions = np.concatenate([ratings[1][rows], ratings[0][own]])
        drawn = [*shown, *(varied_scene(int(row)) for row in rows)]
        embeds, patches = look(clip, scorer.pixels(images.to(device)))
        said = scorer.encode_text([prompt_of(one, rng) for one in drawn])
        logits = clip.logit_scale.exp() * nn.functional.normalize(embeds[: len(drawn)], dim=-1) @ said.T
        return {
            "facts": 3 * looker.name(embeds, facts),
            "cells": looker.point(patches[: len(drawn)], drawn),
            "aesthetic": 0.3 * looker.rate(embeds[len(shown) :], torch.from_numpy(opinions)),
            "contrastive": 0.3 * nn.functional.cross_entropy(logits, torch.arange(len(drawn), device=device)),
        }

    fit("eyes", looker, loss_of, FitSettings(steps, 1e-3, weight_decay=0.05, dtype=fast_dtype(device)), work)
    if processes.is_main_process:
        clip.save_pretrained(work / "eyes")
        scorer.tokenize.tokenizer.save_pretrained(work / "eyes")
