"""CLIP or SigLIP as a scorer: cosine of a picture and its own prompt. TextCraftor's constraint, PickScore, HPSv2."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, CLIPTokenizer, PreTrainedTokenizerBase, SiglipModel

from textcraftor.errors import UsageError
from textcraftor.rewards.base import Reward
from textcraftor.rewards.checkpoints import load_pretrained, model_type
from textcraftor.rewards.open_clip import load_open_clip
from textcraftor.rewards.preprocessing import clip_pixels, squeezed_pixels
from textcraftor.rewards.text import Cache, PromptTokenizer, load_tokenizer

# By the `model_type` of a folder's config.json: the model and its tokenizer.
TOWERS: dict[str, tuple[type[CLIPModel] | type[SiglipModel], type]] = {
    "clip": (CLIPModel, CLIPTokenizer),
    "siglip": (SiglipModel, AutoTokenizer),
}


class ClipSimilarity(Reward):
    """Cosine similarity in [-1, 1] of a frozen CLIP's or SigLIP's image and text embeddings.

    Args:
        clip: a CLIP or a SigLIP (Zhai et al. 2023), whose towers are both frozen.
        tokenizer: its tokenizer.
        open_clip: prompts are cleaned and padded, pictures cropped, as open_clip does; else as transformers does.
    """

    def __init__(
        self, clip: CLIPModel | SiglipModel, tokenizer: PreTrainedTokenizerBase, open_clip: bool = False
    ) -> None:
        super().__init__()
        self.clip, self.open_clip, self.siglip = clip, open_clip, isinstance(clip, SiglipModel)
        length = clip.config.text_config.max_position_embeddings
        self.tokenize = PromptTokenizer(tokenizer, length, open_clip, lower=self.siglip)
        self.texts: Callable[[Sequence[str]], Tensor] = Cache(self.encode_text)
        self.freeze()

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, int (batch, context)."""
        return self.tokenize(prompts).input_ids

    def encode_text(self, prompts: Sequence[str]) -> Float[Tensor, "batch features"]:
        """L2-normalised text embeddings."""
        # The mask of padding is left out: CLIP's attention is causal and the end token comes before it, SigLIP was
        # trained to attend to it.
        features = self.clip.get_text_features(self.tokens(prompts).to(self.clip.device)).pooler_output
        return torch.nn.functional.normalize(features.float(), dim=-1)

    def pixels(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 size size"]:
        """The published preprocessing."""
        size = self.clip.config.vision_config.image_size
        return squeezed_pixels(images, size) if self.siglip else clip_pixels(images, size, not self.open_clip)

    def embed_pixels(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch features"]:
        """L2-normalised image embeddings of preprocessed pictures."""
        features = self.clip.get_image_features(pixels.to(self.clip.dtype)).pooler_output
        return torch.nn.functional.normalize(features.to(pixels.dtype), dim=-1)

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, " batch"]:
        """Scores of preprocessed pictures."""
        embeds = self.embed_pixels(pixels)
        return (embeds * self.texts(prompts).to(embeds)).sum(-1)

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        return self.score_pixels(self.pixels(images), prompts)


def load_clip(path: str, tokenizer: str | None = None) -> tuple[CLIPModel | SiglipModel, PreTrainedTokenizerBase]:
    """A transformers CLIP or SigLIP and its tokenizer from a folder or hub id.

    Raises:
        UsageError: its `config.json` names another model, or it does not load.
    """
    family = model_type(path, "CLIP")
    if family not in TOWERS:
        raise UsageError(f"CLIP {path}: model_type {family!r} is not supported; use one of {', '.join(TOWERS)}")
    model, reader = TOWERS[family]
    return load_pretrained(model, path, "CLIP"), load_tokenizer(reader, tokenizer or path)


class ClipScore(ClipSimilarity):
    """TextCraftor's CLIP constraint, on any CLIP or SigLIP: the cosine, whatever the model's own scale and bias.

    The paper writes the constraint with the CLIP that is being tuned; its code scores with a CLIP whose text tower
    is not the tuned one. The text tower is frozen here, so that the constraint cannot drift with what it constrains.
    """

    scale = 1.0

    @classmethod
    def load(
        cls, path: str, tokenizer: str | None = None, architecture: str | None = None, scale: float = 1.0
    ) -> ClipScore:
        """Load a transformers CLIP or SigLIP (folder or hub id), or an open_clip checkpoint.

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

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, " batch"]:
        """Scores of preprocessed pictures."""
        return self.clip.logit_scale.exp().to(pixels.dtype) * super().score_pixels(pixels, prompts)
