"""CLIP as a scorer: cosine of a picture and its own prompt. TextCraftor's constraint, PickScore, and what HPSv2 is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from textcraftor.errors import UsageError
from textcraftor.rewards.base import Reward
from textcraftor.rewards.checkpoints import load_pretrained
from textcraftor.rewards.open_clip import load_open_clip
from textcraftor.rewards.preprocessing import clip_pixels
from textcraftor.rewards.text import Cache, PromptTokenizer, load_tokenizer


class ClipSimilarity(Reward):
    """Cosine similarity in [-1, 1] of a frozen CLIP's image and text embeddings.

    Args:
        clip: a CLIP whose towers are both frozen.
        tokenizer: its tokenizer.
        open_clip: prompts are cleaned and padded, pictures cropped, as open_clip does; else as transformers does.
    """

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer, open_clip: bool = False) -> None:
        super().__init__()
        self.clip, self.open_clip = clip, open_clip
        self.tokenize = PromptTokenizer(tokenizer, clip.config.text_config.max_position_embeddings, open_clip)
        self.texts = Cache(self.encode_text)
        self.freeze()

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, int (batch, context)."""
        return self.tokenize(prompts).input_ids

    def encode_text(self, prompts: Sequence[str]) -> Float[Tensor, "batch features"]:
        """L2-normalised text embeddings."""
        # The mask of padding is left out: attention is causal and the end token comes before it.
        features = self.clip.get_text_features(self.tokens(prompts).to(self.clip.device)).pooler_output
        return torch.nn.functional.normalize(features.float(), dim=-1)

    def pixels(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 size size"]:
        """The published preprocessing."""
        size = self.clip.config.vision_config.image_size
        return clip_pixels(images, size, floor_crop=not self.open_clip)

    def embed_pixels(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch features"]:
        """L2-normalised image embeddings of preprocessed pictures."""
        features = self.clip.get_image_features(pixels.to(self.clip.dtype)).pooler_output
        return torch.nn.functional.normalize(features.to(pixels.dtype), dim=-1)

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        embeds = self.embed_pixels(self.pixels(images))
        return (embeds * self.texts(prompts).to(embeds)).sum(-1)


def load_clip(path: str, tokenizer: str | None = None) -> tuple[CLIPModel, CLIPTokenizer]:
    """A transformers CLIP and its tokenizer from a folder or hub id."""
    clip = load_pretrained(CLIPModel, path, "CLIP")
    return clip, load_tokenizer(CLIPTokenizer, tokenizer or path)


class ClipScore(ClipSimilarity):
    """TextCraftor's CLIP constraint, on any CLIP.

    The paper writes the constraint with the CLIP that is being tuned; its code scores with a CLIP whose text tower
    is not the tuned one. The text tower is frozen here, so that the constraint cannot drift with what it constrains.
    """

    scale = 1.0

    @classmethod
    def load(
        cls, path: str, tokenizer: str | None = None, architecture: str | None = None, scale: float = 1.0
    ) -> ClipScore:
        """Load a transformers CLIP (folder or hub id), or an open_clip checkpoint.

        Args:
            path: the folder, hub id or checkpoint file.
            tokenizer: of an open_clip checkpoint: the folder or hub id of a CLIP tokenizer.
            architecture: of an open_clip checkpoint, see `load_open_clip`.
            scale: of the score; papers that report "CLIP score" print the cosine of ViT-B/32 times 100.
        """
        if architecture is None:
            scorer = cls(*load_clip(path, tokenizer))
        elif tokenizer is None:
            raise UsageError(f"{path}: an open_clip checkpoint holds no tokenizer; name one with tokenizer=")
        else:
            clip = load_open_clip(path, architecture)
            scorer = cls(clip, load_tokenizer(CLIPTokenizer, tokenizer), open_clip=True)
        scorer.scale = scale
        return scorer

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        return self.scale * super().score(images, prompts)


class PickScore(ClipSimilarity):
    """PickScore (Kirstain et al. 2023): temperature times cosine, about 21 for SD 1.5; matching pairs only."""

    @classmethod
    def load(cls, path: str) -> PickScore:
        """Load the published transformers layout from a folder or hub id."""
        return cls(*load_clip(path))

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        return self.clip.logit_scale.exp().to(images.dtype) * super().score(images, prompts)
