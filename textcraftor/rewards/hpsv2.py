"""HPSv2: the cosine of a picture and its prompt in a CLIP trained on human preferences (Wu et al. 2023)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTokenizer

from textcraftor.rewards.clip import ClipSimilarity
from textcraftor.rewards.open_clip import load_open_clip
from textcraftor.rewards.preprocessing import padded_pixels
from textcraftor.rewards.text import load_tokenizer


class HPSv2(ClipSimilarity):
    """The published score of v2 and v2.1: a cosine in [-1, 1], not times 100 as tables print it."""

    def pixels(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 size size"]:
        """The published preprocessing: no crop but black borders, no rounding."""
        return padded_pixels(images, self.clip.config.vision_config.image_size)

    @classmethod
    def load(cls, checkpoint: str, tokenizer: str, architecture: str = "ViT-H-14") -> HPSv2:
        """Load an open_clip checkpoint and the tokenizer of the CLIP that it was trained from.

        Args:
            checkpoint: `HPS_v2_compressed.pt`, `HPS_v2.1_compressed.pt` or another of that layout.
            tokenizer: folder or hub id of a CLIP tokenizer.
            architecture: see `load_open_clip`.
        """
        clip = load_open_clip(checkpoint, architecture)
        return cls(clip, load_tokenizer(CLIPTokenizer, tokenizer), open_clip=True)
