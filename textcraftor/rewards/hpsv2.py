"""HPSv2: the cosine of a picture and its prompt in a CLIP trained on human preferences (Wu et al. 2023)."""

from __future__ import annotations

from transformers import CLIPTokenizer

from textcraftor.rewards.checkpoints import require
from textcraftor.rewards.clip import ClipSimilarity
from textcraftor.rewards.open_clip import load_open_clip


class HPSv2(ClipSimilarity):
    """The published score: a cosine in [-1, 1], not times 100."""

    @classmethod
    def load(cls, checkpoint: str, tokenizer: str) -> HPSv2:
        """Load an open_clip checkpoint and the tokenizer of the CLIP that it was trained from."""
        clip = load_open_clip(checkpoint)
        return cls(clip, CLIPTokenizer.from_pretrained(require(tokenizer, "tokenizer")))
