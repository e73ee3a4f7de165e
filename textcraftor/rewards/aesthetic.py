"""Aesthetic predictors: a linear head (LAION's v1) or five linear layers without activations on an image embedding,
CLIP's for LAION's v2, SigLIP's for Aesthetic Predictor V2.5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection, SiglipVisionModel

from textcraftor.errors import UsageError
from textcraftor.rewards.base import Reward
from textcraftor.rewards.checkpoints import build, load_pretrained, load_state, model_type, require_keys
from textcraftor.rewards.preprocessing import clip_pixels, squeezed_pixels

LAYERS = (0, 2, 4, 6, 7)  # where the published head's linear layers stand; dropout is between the first four
V25_LAYERS = (0, 2, 4, 6, 8)  # ... where V2.5, `scoring_head.N.*`, has one more dropout
HEADS = "the layout of LAION's aesthetic head v2 (layers.N.*) or v1 (weight, bias), or of V2.5 (scoring_head.N.*)"
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


def load_head(file: str) -> tuple[nn.Module, int]:
    """A published head, and the width of the embedding that it takes.

    Args:
        file: a local file, `hf://owner/repo/file` or an address.

    Raises:
        UsageError: it is of no published layout.
    """
    state = load_state(file, "aesthetic head")
    if set(state) == {"weight", "bias"}:
        width = state["weight"].shape[1]
        return build(lambda: nn.Linear(width, 1), state, file, "LAION's aesthetic head v1"), width
    if any(key.startswith("scoring_head.") for key in state):
        keys = [f"scoring_head.{layer}.{part}" for layer in V25_LAYERS for part in ("weight", "bias")]
        require_keys(state, keys, file, HEADS)
        names = [f"layers.{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")]
        state = {name: state[key] for name, key in zip(names, keys, strict=True)}
    return LinearHead.of(state, file, HEADS), state["layers.0.weight"].shape[1]


def load_tower(clip: str) -> CLIPVisionModelWithProjection | SiglipVisionModel:
    """The vision tower of a CLIP or SigLIP, from a folder or hub id."""
    siglip = model_type(clip, "CLIP") in ("siglip", "siglip_vision_model")
    return load_pretrained(SiglipVisionModel if siglip else CLIPVisionModelWithProjection, clip, "CLIP")


class Aesthetic(Reward):
    """The aesthetic score, about 1 to 10 with the published heads. Prompts do not matter to it.

    Args:
        vision: the vision tower of a CLIP (LAION's predictors) or of a SigLIP (Aesthetic Predictor V2.5).
        head: from its L2-normalised embedding to the score.
    """

    def __init__(self, vision: CLIPVisionModelWithProjection | SiglipVisionModel, head: nn.Module) -> None:
        super().__init__()
        self.vision, self.head, self.siglip = vision, head, isinstance(vision, SiglipVisionModel)
        self.freeze()

    @classmethod
    def load(cls, clip: str, head: str) -> Aesthetic:
        """Load the vision tower of a CLIP or SigLIP (folder or hub id) and a head, see `load_head`."""
        mlp, takes = load_head(head)
        vision = load_tower(clip)
        gives = vision.config.hidden_size if isinstance(vision, SiglipVisionModel) else vision.config.projection_dim
        if takes != gives:
            raise UsageError(f"{head} takes embeddings of width {takes}, but {clip} gives {gives}")
        return cls(vision, mlp)

    def pixels(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 size size"]:
        """The published preprocessing."""
        size = self.vision.config.image_size
        return squeezed_pixels(images, size) if self.siglip else clip_pixels(images, size)

    def embed_pixels(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch features"]:
        """L2-normalised image embeddings of preprocessed pictures."""
        seen = self.vision(pixels.to(self.vision.dtype))
        return nn.functional.normalize(seen.pooler_output if self.siglip else seen.image_embeds, dim=-1)

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        return self.head(self.embed_pixels(self.pixels(images))).squeeze(-1).to(images.dtype)
