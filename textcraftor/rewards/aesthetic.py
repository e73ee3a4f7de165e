"""LAION's aesthetic predictors: a linear head (v1) or an MLP without activations (v2) on a CLIP image embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from textcraftor.errors import UsageError
from textcraftor.rewards.base import Reward
from textcraftor.rewards.checkpoints import build, load_pretrained, load_state, require_keys
from textcraftor.rewards.preprocessing import clip_pixels

LAYERS = (0, 2, 4, 6, 7)  # where the published head's linear layers stand; dropout is between the first four
PUBLISHED_WIDTHS = (1024, 128, 64, 16, 1)


class LinearHead(nn.Module):
    """Five linear layers with dropout between them, keys `layers.N.weight` and `layers.N.bias` as published.

    LAION's aesthetic head v2, and the head of ImageReward.

    Args:
        width: of the embedding.
        widths: outputs of the five layers.
    """

    def __init__(self, width: int, widths: Sequence[int] = PUBLISHED_WIDTHS) -> None:
        super().__init__()
        linear = [nn.Linear(a, b) for a, b in zip((width, *widths), widths, strict=False)]
        dropout = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
        layers = [layer for pair in zip(linear[:3], dropout, strict=True) for layer in pair]
        self.layers = nn.Sequential(*layers, *linear[3:])

    def forward(self, embeds: Float[Tensor, "batch features"]) -> Float[Tensor, "batch 1"]:
        return self.layers(embeds)

    @classmethod
    def of(cls, state: Mapping[str, Tensor], source: str, layout: str) -> nn.Module:
        """A head as wide as the weights in `state`."""
        require_keys(state, [f"layers.{i}.{part}" for i in LAYERS for part in ("weight", "bias")], source, layout)
        width, widths = state["layers.0.weight"].shape[1], [len(state[f"layers.{i}.bias"]) for i in LAYERS]
        return build(lambda: cls(width, widths), state, source, layout)


class Aesthetic(Reward):
    """LAION's aesthetic score, about 1 to 10 with the published heads. Prompts do not matter to it."""

    def __init__(self, vision: CLIPVisionModelWithProjection, head: nn.Module) -> None:
        super().__init__()
        self.vision, self.head = vision, head
        self.freeze()

    @classmethod
    def load(cls, clip: str, head: str) -> Aesthetic:
        """Load a CLIP's vision tower (folder or hub id) and a head: v2's `layers.N.*`, or v1's `weight` and `bias`."""
        state = load_state(head, "aesthetic head")
        if set(state) == {"weight", "bias"}:
            width = state["weight"].shape[1]
            mlp = build(lambda: nn.Linear(width, 1), state, head, "LAION's aesthetic head v1")
        else:
            mlp = LinearHead.of(
                state, head, "the layout of LAION's aesthetic head v2 (layers.N.*) or v1 (weight, bias)"
            )
            width = state["layers.0.weight"].shape[1]
        vision = load_pretrained(CLIPVisionModelWithProjection, clip, "CLIP")
        if width != vision.config.projection_dim:
            raise UsageError(
                f"{head} takes embeddings of width {width}, but {clip} gives {vision.config.projection_dim}"
            )
        return cls(vision, mlp)

    def pixels(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 size size"]:
        """The published preprocessing."""
        return clip_pixels(images, self.vision.config.image_size)

    def embed_pixels(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch features"]:
        """L2-normalised image embeddings of preprocessed pictures."""
        return nn.functional.normalize(self.vision(pixels.to(self.vision.dtype)).image_embeds, dim=-1)

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        return self.head(self.embed_pixels(self.pixels(images))).squeeze(-1).to(images.dtype)
