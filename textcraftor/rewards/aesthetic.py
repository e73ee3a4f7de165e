"""LAION's aesthetic predictor v2: an MLP without activations on a CLIP image embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from textcraftor.errors import UsageError
from textcraftor.rewards.base import Reward
from textcraftor.rewards.checkpoints import load_state, require
from textcraftor.rewards.preprocessing import clip_pixels

LAYERS = (0, 2, 4, 6, 7)  # where the published head's linear layers stand; dropout is between the first four
PUBLISHED_WIDTHS = (1024, 128, 64, 16, 1)


class AestheticHead(nn.Module):
    """Five linear layers with dropout between them, keys `layers.N.weight` and `layers.N.bias` as published.

    Args:
        width: of the CLIP embedding.
        widths: outputs of the five layers.
    """

    def __init__(self, width: int, widths: Sequence[int] = PUBLISHED_WIDTHS) -> None:
        super().__init__()
        linear = [nn.Linear(a, b) for a, b in zip((width, *widths), widths, strict=False)]
        dropout = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
        self.layers = nn.Sequential(
            *(layer for pair in zip(linear[:3], dropout, strict=True) for layer in pair), *linear[3:]
        )

    def forward(self, embeds: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        return self.layers(embeds).squeeze(-1)


class Aesthetic(Reward):
    """LAION aesthetic v2, about 1 to 10 with the published head. Prompts do not matter to it."""

    def __init__(self, vision: CLIPVisionModelWithProjection, head: AestheticHead) -> None:
        super().__init__()
        self.vision, self.head = vision, head
        self.freeze()

    @classmethod
    def load(cls, clip: str, head: str) -> Aesthetic:
        """Load a CLIP's vision tower (folder or hub id) and the head's `.safetensors` or `.pth` file."""
        vision = CLIPVisionModelWithProjection.from_pretrained(require(clip, "CLIP"), dtype=torch.float32)
        state = load_state(head, "aesthetic head")
        missing = [f"layers.{i}.{part}" for i in LAYERS for part in ("weight", "bias")]
        missing = [key for key in missing if key not in state]
        if missing:
            raise UsageError(f"{head}: key {missing[0]!r} is missing; expected the layout of LAION's aesthetic v2 head")
        width = state["layers.0.weight"].shape[1]
        if width != vision.config.projection_dim:
            raise UsageError(
                f"{head} takes embeddings of width {width}, but {clip} gives {vision.config.projection_dim}"
            )
        mlp = AestheticHead(width, [len(state[f"layers.{i}.bias"]) for i in LAYERS])
        mlp.load_state_dict({key: value.float() for key, value in state.items()})
        return cls(vision, mlp)

    def embed_images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """L2-normalised image embeddings."""
        pixels = clip_pixels(images, self.vision.config.image_size)
        return nn.functional.normalize(self.vision(pixels).image_embeds, dim=-1)

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        return self.head(self.embed_images(images))
