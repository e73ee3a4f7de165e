"""TrOCR (Li et al. 2021) as a recogniser that a gradient can pass through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, VisionEncoderDecoderModel

from textcraftor.errors import UsageError
from textcraftor.rewards.checkpoints import load_pretrained, read_settings
from textcraftor.rewards.preprocessing import MODES, normalize, resize
from textcraftor.rewards.reading import Recogniser, characters, too_long, unreadable
from textcraftor.rewards.text import load_tokenizer


class TrOCR(Recogniser):
    """A vision transformer and an autoregressive decoder.

    Args:
        model: with a vision transformer as encoder.
        tokenizer: the decoder's.
        processing: the published `preprocessor_config.json`.
    """

    def __init__(
        self,
        model: VisionEncoderDecoderModel,
        tokenizer: PreTrainedTokenizerBase,
        processing: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.processing = model, tokenizer, processing
        config = model.config.decoder
        self.start, self.end = config.decoder_start_token_id, config.eos_token_id
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: str, alphabet: str | None = None) -> TrOCR:
        if alphabet is not None:
            raise UsageError(
                f"alphabet={alphabet} limits recognisers that have one class a character; {path} is a TrOCR, which "
                "spells in parts of words: leave it out, or take a PP-OCR, as ocr=published does"
            )
        model = load_pretrained(VisionEncoderDecoderModel, path, "recogniser", unused="pooler")
        return cls(
            model, load_tokenizer(AutoTokenizer, path), read_settings(path, "preprocessor_config.json", "recogniser")
        )

    def check(self, text: str) -> None:
        strange = self.tokenizer.all_special_ids  # what stands for anything unknown is among them
        if any(token in strange for token in self._tokens(text)):
            letters = (letter for letter in text if any(token in strange for token in self._tokens(letter)))
            raise unreadable(text, next(letters, text))
        tokens, most = len(self._tokens(text)), self.model.config.decoder.max_position_embeddings - 1
        if tokens > most:
            raise too_long(text, f"has {tokens} tokens", f"{most} tokens")

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def pixels(self, crops: Float[Tensor, "crops 3 height width"]) -> Tensor:
        size, settings = self.processing["size"], self.processing
        height, width = (size["height"], size["width"]) if isinstance(size, Mapping) else (size, size)
        mode = MODES[settings.get("resample", Image.Resampling.BILINEAR)]
        return normalize(resize(crops, height, width, mode), settings["image_mean"], settings["image_std"])

    def encode(self, pixels: Tensor) -> Float[Tensor, "crops positions features"]:
        return self.model.encoder(pixels.to(self.model.dtype)).last_hidden_state

    def log_likelihood(
        self, seen: Float[Tensor, "pairs positions features"], texts: Sequence[str]
    ) -> Float[Tensor, " pairs"]:
        for text in dict.fromkeys(texts):
            self.check(text)
        ids = [[*self._tokens(text), self.end] for text in texts]
        longest = max(map(len, ids))
        targets = torch.tensor([row + [self.end] * (longest - len(row)) for row in ids], device=seen.device)
        real = torch.tensor([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in ids]).to(seen)
        before = torch.cat([torch.full_like(targets[:, :1], self.start), targets[:, :-1]], 1)
        # A wider encoder reaches the decoder through a projection in some TrOCR-like models.
        states = self.model.enc_to_dec_proj(seen) if hasattr(self.model, "enc_to_dec_proj") else seen
        logits = self.model.decoder(input_ids=before, encoder_hidden_states=states, use_cache=False).logits
        each = logits.to(real.dtype).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        return (each * real).sum(1) / characters(texts).to(real)

    def read(self, seen: Float[Tensor, "crops positions features"]) -> list[str]:
        states = self.model.enc_to_dec_proj(seen) if hasattr(self.model, "enc_to_dec_proj") else seen
        tokens = torch.full((len(seen), 1), self.start, device=seen.device)
        done = torch.zeros(len(seen), dtype=torch.bool, device=seen.device)
        for _ in range(self.model.config.decoder.max_position_embeddings - 2):
            logits = self.model.decoder(input_ids=tokens, encoder_hidden_states=states, use_cache=False).logits
            following = logits[:, -1].argmax(-1).masked_fill(done, self.end)
            tokens = torch.cat([tokens, following[:, None]], 1)
            done |= following == self.end
            if done.all():
                break
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in tokens[:, 1:].tolist()]
