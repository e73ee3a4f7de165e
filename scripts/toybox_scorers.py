"""Trains the toybox's scorers on what its raters thought, in the layouts in which the published ones come."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from editions import fast_dtype
from safetensors.torch import save_file
from torch import Tensor, nn
from toybox_eyes import ATTENTION, Looker, look, new_looker, rated_pictures, shifted, train_eyes
from toybox_ratings import (
    AESTHETIC,
    FACTS,
    PICTURES,
    RATERS,
    Rated,
    facts_of_scene,
    rate_samples,
    varied_prompts,
    varied_scene,
    vary_scenes,
)
from toybox_recogniser import train_recogniser
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from textcraftor.rewards.aesthetic import Aesthetic, LinearHead
from textcraftor.rewards.base import Reward
from textcraftor.rewards.clip import ClipScore, ClipSimilarity, PickScore
from textcraftor.rewards.hpsv2 import HPSv2
from textcraftor.rewards.image_reward import ImageReward, with_blip_tokens
from textcraftor.rewards.open_clip import from_transformers
from textcraftor.toybox.world2.captions import VOCABULARY
from textcraftor.training.fitting import FitSettings, fit

GRADE_SCALE = 0.4  # of opinions: about their standard deviation among one prompt's pictures
HEAD_WIDTHS = (64, 32, 16, 8, 1)
SAMPLE_SHARE = 0.6  # of each batch, from the generator's own pictures; the rest are varied scenes


@dataclass(frozen=True)
class Drawn:
    """A batch of pictures.

    Args:
        images: (groups * PICTURES, 3, 64, 64).
        prompts: one a group.
        opinions: (groups, PICTURES, ...).
        facts: (groups * PICTURES, questions).
        varied: numbers of the varied scenes, whose pictures stand last.
    """

    images: Tensor
    prompts: list[str]
    opinions: Tensor
    facts: np.ndarray
    varied: np.ndarray


def draw_groups(
    sources: tuple[Rated, Rated], ratings: list[np.ndarray], groups: int, rng: np.random.Generator
) -> Drawn:
    """A batch, its varied scenes last; `ratings` of each source, (pictures, ...)."""
    counts = (round(groups * SAMPLE_SHARE), groups - round(groups * SAMPLE_SHARE))
    images, prompts, opinions, facts = [], list[str](), [], []
    for rated, said, count, hold_out in zip(sources, ratings, counts, (True, False), strict=True):
        free = np.unique(rated.said[~rated.unseen] if hold_out else rated.said)
        chosen = rng.choice(free, count, replace=False)
        rows = (chosen[:, None] * PICTURES + np.arange(PICTURES)).ravel()  # the pictures of a prompt stand together
        images.append(shifted(rated.show(rows), rng))
        prompts += [rated.prompts[index] for index in chosen]
        opinions.append(said[rows].reshape(count, PICTURES, *said.shape[1:]))
        facts.append(rated.facts[rows])
    opinion = torch.from_numpy(np.concatenate(opinions)).float()
    return Drawn(torch.cat(images), prompts, opinion, np.concatenate(facts), rows)


def grade_loss(logits: Tensor, opinions: Tensor) -> Tensor:
    """Mean squared error of how much better each picture is than the others of its prompt.

    Published preference models learn from which of two pictures won (Wu et al. 2023, eq. 2), one bit a pair; a grade
    tells more, and a small model that sees few pictures needs it.

    Args:
        logits, opinions: (groups, pictures); what all pictures of a prompt share is no matter.
    """
    wanted = (opinions - opinions.mean(1, keepdim=True)) / GRADE_SCALE
    return nn.functional.mse_loss(logits - logits.mean(1, keepdim=True), wanted)


def scorer_settings(steps: int, learning_rate: float, device: str) -> FitSettings:
    return FitSettings(steps, learning_rate, weight_decay=0.05, ema_decay=0.99, dtype=fast_dtype(device))


def train_aesthetic(work: Path, device: str, steps: int = 700, batch: int = 128) -> None:
    """LAION's head on the toy CLIP's vision tower, which learns along: its own embedding knows too little of taste."""
    sources = rated_pictures(work)
    ratings = [AESTHETIC.ratings(rated) for rated in sources]
    vision = CLIPVisionModelWithProjection.from_pretrained(work / "eyes", dtype=torch.float32, **ATTENTION)
    torch.manual_seed(0)
    scorer = Aesthetic(vision, LinearHead(vision.config.projection_dim, HEAD_WIDTHS)).to(device)
    nn.init.constant_(scorer.head.layers[-1].bias, ratings[0].mean())
    scorer.requires_grad_(True).train()

    def loss_of(step: int) -> dict[str, Tensor]:
        drawn = draw_groups(sources, ratings, batch // PICTURES, np.random.default_rng((61, step)))
        scores = scorer.head(scorer.embed_pixels(scorer.pixels(drawn.images.to(device))))
        return {"mse": nn.functional.mse_loss(scores[:, 0], drawn.opinions.ravel().to(device))}

    fit("aesthetic", scorer, loss_of, scorer_settings(steps, 3e-4, device), work)
    vision.save_pretrained(work / "aesthetic_clip")
    save_file(scorer.head.state_dict(), work / "aesthetic.safetensors")


def new_preference(work: Path) -> ClipSimilarity:
    clip = CLIPModel.from_pretrained(work / "eyes", dtype=torch.float32, **ATTENTION)
    return ClipSimilarity(clip, CLIPTokenizer.from_pretrained(work / "eyes"))


def train_preference(work: Path, device: str, name: str, steps: int, groups: int) -> CLIPModel:
    """Fine-tune the toy CLIP on the noisy grades of one population of raters; it goes on learning to see."""
    sources, raters = rated_pictures(work), RATERS[name]
    ratings = [np.stack([raters.ratings(rated), AESTHETIC.ratings(rated)], 1) for rated in sources]
    torch.manual_seed(raters.seed)
    scorer = new_preference(work)
    clip = scorer.clip
    nn.init.constant_(clip.logit_scale, math.log(4))  # a contrastive temperature would make the first steps violent
    looker = new_looker(clip)
    eyes = torch.load(work / "eyes.checkpoint.pt", weights_only=True)["model"]
    looker.load_state_dict({key: value for key, value in eyes.items() if not key.startswith("model.")}, strict=False)
    looker.to(device).requires_grad_(True).train()

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((raters.seed, step))
        drawn = draw_groups(sources, ratings, groups, rng)
        embeds, patches = look(clip, scorer.pixels(drawn.images.to(device)))
        looked = nn.functional.normalize(embeds, dim=-1).unflatten(0, (groups, PICTURES))
        logits = clip.logit_scale.exp() * (looked * scorer.encode_text(drawn.prompts)[:, None]).sum(-1)
        scenes = [varied_scene(int(row)) for row in drawn.varied]
        return {
            "grades": grade_loss(logits, drawn.opinions[..., 0].to(device)),
            "aesthetic": 0.3 * looker.rate(embeds, drawn.opinions[..., 1].flatten()),
            "facts": looker.name(embeds, drawn.facts),
            "cells": 0.5 * looker.point(patches[-len(scenes) :], scenes),
        }

    fit(name, looker, loss_of, scorer_settings(steps, 4e-4, device), work)
    return clip


def train_hpsv2(work: Path, device: str, steps: int = 2400, groups: int = 32) -> None:
    """HPSv2's layout: an open_clip state dict."""
    clip = train_preference(work, device, "hpsv2", steps, groups)
    save_file(from_transformers(clip.state_dict(), clip.config), work / "hpsv2.safetensors")
    (work / "hpsv2.json").write_text(clip.config.to_json_string())


def train_pickscore(work: Path, device: str, steps: int = 2400, groups: int = 32) -> None:
    """PickScore's layout: a transformers CLIP folder."""
    clip = train_preference(work, device, "pickscore", steps, groups)
    clip.save_pretrained(work / "pickscore")
    CLIPTokenizer.from_pretrained(work / "clip").save_pretrained(work / "pickscore")


def new_bert_tokenizer() -> BertTokenizer:
    """The grammar's words whole, anything else letter by letter, in lower case as bert-base-uncased."""
    pieces = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), ",", '"']
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*VOCABULARY, *pieces])]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


def new_image_reward(width: int = 128, layers: int = 3) -> ImageReward:
    tokenizer = with_blip_tokens(new_bert_tokenizer())
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    vision = BlipVisionConfig(
        **tower, num_attention_heads=width // 64, image_size=64, patch_size=8, layer_norm_eps=1e-6
    )
    text = BlipTextConfig(
        **tower,
        num_attention_heads=width // 32,
        vocab_size=len(tokenizer),
        encoder_hidden_size=width,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    towers = (
        BlipVisionModel._from_config(vision, **ATTENTION),
        BlipTextModel._from_config(text, add_pooling_layer=False, **ATTENTION),
    )
    return ImageReward(*towers, LinearHead(width, HEAD_WIDTHS), tokenizer)


def lend_eyes(work: Path, vision: BlipVisionModel) -> None:
    """Start BLIP's vision tower from the eyes': the same but for one normalisation, which it learns to do without."""
    lent = CLIPVisionModelWithProjection.from_pretrained(work / "eyes", dtype=torch.float32).vision_model.state_dict()
    state = vision.state_dict()
    for key, value in state.items():
        if ".qkv." in key:
            parts = [lent[key.replace("qkv", part)] for part in ("q_proj", "k_proj", "v_proj")]
            value.copy_(torch.cat(parts))
        else:
            own = key.replace(".projection.", ".out_proj.")
            value.copy_(lent[own].view_as(value) if own in lent else torch.zeros_like(value))
    vision.load_state_dict(state)


def train_image_reward(work: Path, device: str, steps: int = 1500, groups: int = 16) -> None:
    """ImageReward's layout: BLIP reads the prompt with an eye on the picture. Along with the grade it learns to name
    what the picture shows, and what of the wish it holds: annotators who tick what is wrong tell more than a grade."""
    sources, raters = rated_pictures(work), RATERS["imagereward"]
    ratings = [np.stack([raters.ratings(rated), AESTHETIC.ratings(rated)], 1) for rated in sources]
    torch.manual_seed(raters.seed)
    scorer = new_image_reward()
    width = scorer.vision.config.hidden_size
    lend_eyes(work, scorer.vision)
    looker = Looker(scorer, width, width)
    learning = nn.ModuleDict({"looker": looker, "held": nn.Linear(width, len(FACTS))})
    learning.to(device).requires_grad_(True).train()

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((raters.seed, step))
        drawn = draw_groups(sources, ratings, groups, rng)
        seen = scorer.look(scorer.pixels(drawn.images.to(device)))
        states = scorer.read(seen, [prompt for prompt in drawn.prompts for _ in range(PICTURES)])
        grades = scorer.mlp(states).unflatten(0, (groups, PICTURES))[..., 0]
        scenes = [varied_scene(int(row)) for row in drawn.varied]
        wished = np.array([facts_of_scene(varied_prompts()[0][int(row) // PICTURES]) for row in drawn.varied])
        held = torch.from_numpy(wished == [facts_of_scene(one) for one in scenes]).float().to(device)
        ticked = nn.functional.binary_cross_entropy_with_logits(
            learning["held"](states[-len(scenes) :]), held, weight=torch.from_numpy(wished != -100).float().to(device)
        )
        return {
            "grades": grade_loss(grades, drawn.opinions[..., 0].to(device)),
            "held": 10 * ticked,
            "aesthetic": 0.3 * looker.rate(seen[:, 0], drawn.opinions[..., 1].flatten()),
            "facts": looker.name(seen[:, 0], drawn.facts),
            "cells": looker.point(seen[-len(scenes) :, 1:], scenes),
        }

    fit("imagereward", learning, loss_of, scorer_settings(steps, 5e-4, device), work)
    folder = work / "imagereward"
    folder.mkdir(exist_ok=True)
    save_file(
        {key: value.contiguous() for key, value in scorer.published_state().items()}, folder / "ImageReward.safetensors"
    )
    (folder / "med_config.json").write_text(scorer.text.config.to_json_string())
    scorer.tokenize.tokenizer.save_pretrained(folder)


def packed_scorers(weights: Path) -> dict[str, Reward]:
    """Every scorer as users load it."""
    tokenizer = str(weights / "pipeline" / "tokenizer")
    folder = weights / "imagereward"
    return {
        "aesthetic": Aesthetic.load(str(weights / "aesthetic_clip"), str(weights / "aesthetic.safetensors")),
        "hpsv2": HPSv2.load(str(weights / "hpsv2.safetensors"), tokenizer, str(weights / "hpsv2.json")),
        "pickscore": PickScore.load(str(weights / "pickscore")),
        "imagereward": ImageReward.load(
            str(folder / "ImageReward.safetensors"), str(folder / "med_config.json"), str(folder)
        ),
        "clip": ClipScore.load(str(weights / "clip_constraint")),
    }


SCORER_STAGES: dict[str, Callable[[Path, str], None]] = {
    "samples": rate_samples,
    "varied": vary_scenes,
    "eyes": train_eyes,
    "aesthetic": train_aesthetic,
    "hpsv2": train_hpsv2,
    "pickscore": train_pickscore,
    "imagereward": train_image_reward,
    "recogniser": train_recogniser,
}
