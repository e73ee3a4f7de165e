"""Our scorers' answers to a job, under the names that the reference runners use."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from parity.runner import joined
from textcraftor.rewards.aesthetic import Aesthetic
from textcraftor.rewards.base import Reward
from textcraftor.rewards.clip import ClipSimilarity, PickScore
from textcraftor.rewards.hpsv3 import HPSv3
from textcraftor.rewards.image_reward import ImageReward
from textcraftor.rewards.mps import MPS


def picture(path: str) -> Tensor:
    """A PNG as the rewards take pictures: float (1, 3, height, width) in [0, 1]."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def tokens(scorer: Reward, prompts: Sequence[str]) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prompt longer than the context is meant
        if isinstance(scorer, (ClipSimilarity, MPS)):
            return {"ids": scorer.tokens(prompts)}
        if isinstance(scorer, ImageReward):
            return dict(zip(("ids", "mask"), scorer.tokens(prompts), strict=True))
        return {}


def preprocessed(scorer: Reward, image: Tensor) -> Tensor:
    """One picture as the scorer's model takes it, (3, size, size) or (patches, values)."""
    return scorer.reader.look(image)["pixel_values"] if isinstance(scorer, HPSv3) else scorer.pixels(image)[0]


def score_pixels(scorer: Reward, image: Tensor, pixels: Tensor, prompt: str) -> dict[str, Tensor]:
    """Score and image features of one preprocessed picture.

    Args:
        image: the same before: its shape may say what the preprocessed one does not.
    """
    if isinstance(scorer, HPSv3):
        return {"score": scorer.judge(scorer.reader.look(image) | {"pixel_values": pixels}, [prompt])}
    pixels = pixels[None]
    if isinstance(scorer, (ImageReward, MPS)):
        return {"score": scorer.score_pixels(pixels, [prompt])}
    features = scorer.embed_pixels(pixels)
    if isinstance(scorer, Aesthetic):
        return {"score": scorer.head(features.to(scorer.vision.dtype)).squeeze(-1).to(pixels.dtype)} | {
            "image_features": features
        }
    scale = scorer.clip.logit_scale.exp().float() if isinstance(scorer, PickScore) else 1.0
    return {"score": scale * (features * scorer.encode_text([prompt])).sum(-1), "image_features": features}


def gradient(scorer: Reward, image: Tensor, pixels: Tensor, prompt: str) -> Tensor:
    """d score / d pixels of one picture."""
    leaf = pixels.clone().requires_grad_()
    score_pixels(scorer, image, leaf, prompt)["score"].sum().backward()
    return leaf.grad


def answer(scorer: Reward, job: dict, same: int, gradients: int, half: int) -> tuple[dict[str, np.ndarray], list]:
    """Scores of all pictures end to end; features, gradients and 16-bit scores of the first few. And these few as
    preprocessed here."""
    pictures, prompts = [picture(path) for path in job["pictures"]], job["prompts"]
    found = {f"tokens_{key}": value for key, value in tokens(scorer, job["token_prompts"]).items()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = [preprocessed(scorer, image) for image in pictures]
        found["own_pixels"] = joined(pixels)
        pairs = list(zip(pictures, pixels, prompts, strict=True))
        found["own_score"] = torch.cat([scorer(image, [prompt]) for image, _, prompt in pairs])
        if isinstance(scorer, ClipSimilarity):
            found["text_features"] = scorer.encode_text(prompts)
        rows = [score_pixels(scorer, *pair) for pair in pairs[:same]]
        found |= {f"same_{key}": torch.cat([row[key] for row in rows]) for key in (rows[0] if rows else {})}
    if gradients:
        found["gradients"] = joined([gradient(scorer, *pair) for pair in pairs[:gradients]])
    if half:
        found["half_score"] = sixteen_bit(scorer, pictures[:half], prompts[:half])
    return {
        key: value.detach().float().numpy() if value.is_floating_point() else value.numpy()
        for key, value in found.items()
    }, [one.numpy() for one in pixels[:same]]


@torch.no_grad()
def sixteen_bit(scorer: Reward, pictures: list[Tensor], prompts: Sequence[str]) -> Tensor:
    """Scores with all weights in bfloat16; the scorer stays so."""
    scorer.to(torch.bfloat16)
    return torch.cat([scorer(image, [prompt]).float() for image, prompt in zip(pictures, prompts, strict=True)])
