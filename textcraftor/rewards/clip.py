"""CLIP as a scorer: cosine of a picture and its own prompt. The constraint of TextCraftor, and the base of HPSv2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from textcraftor.rewards.base import Reward, TextFeatures
from textcraftor.rewards.checkpoints import require
from textcraftor.rewards.preprocessing import clip_pixels


class ClipSimilarity(Reward):
    """Cosine similarity in [-1, 1] of a frozen CLIP's image and text embeddings.

    Args:
        clip: a CLIP whose towers are both frozen.
        tokenizer: its tokenizer.
    """

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.clip, self.tokenizer = clip, tokenizer
        self.texts = TextFeatures()
        self.freeze()

    def encode_text(self, prompts: Sequence[str]) -> Float[Tensor, "batch features"]:
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.clip.config.text_config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).to(self.clip.device)
        # The mask of padding is left out: attention is causal and the end token comes before it.
        features = self.clip.get_text_features(tokens.input_ids).pooler_output
        return torch.nn.functional.normalize(features, dim=-1)

    def embed_images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """L2-normalised image embeddings."""
        pixels = clip_pixels(images, self.clip.config.vision_config.image_size)
        return torch.nn.functional.normalize(self.clip.get_image_features(pixels).pooler_output, dim=-1)

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        return (self.embed_images(images) * self.texts.get(prompts, self.encode_text)).sum(-1)


class ClipScore(ClipSimilarity):
    """TextCraftor's CLIP constraint, on any CLIP.

    The paper constrains with the tuned encoder's own CLIP; the text tower is frozen here, so that the constraint
    cannot drift with what it constrains.
    """

    @classmethod
    def load(cls, path: str) -> ClipScore:
        """Load a transformers CLIP folder or hub id."""
        require(path, "CLIP")
        return cls(CLIPModel.from_pretrained(path, dtype=torch.float32), CLIPTokenizer.from_pretrained(path))
