"""Text recognisers that a gradient can pass through: how likely is it that a crop of a picture says a given text?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PPOCRV5ServerRecForTextRecognition,
    PPOCRV6TinyRecForTextRecognition,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    VisionEncoderDecoderModel,
)

from textcraftor.assets import folder_or_id
from textcraftor.errors import UsageError
from textcraftor.rewards.checkpoints import load_pretrained, read_settings
from textcraftor.rewards.preprocessing import MODES, normalize, resize
from textcraftor.rewards.text import load_tokenizer

PUBLISHED = Path(__file__).parent / "pp_ocrv6_tiny"  # PP-OCRv6 tiny with its published weights


class Recogniser(nn.Module):
    """A frozen reader of single lines. Crops are float (crops, 3, height, width) in [0, 1]."""

    def check(self, text: str) -> None:
        """Refuse a text that this recogniser cannot read.

        Raises:
            UsageError: it has a character that is not known, or is too long.
        """

    def pixels(self, crops: Float[Tensor, "crops 3 height width"]) -> Tensor:
        """The published preprocessing: one size for all crops, so that those of several sizes can be joined."""
        raise NotImplementedError

    def encode(self, pixels: Tensor) -> Float[Tensor, "crops positions features"]:
        """What the recogniser sees in each crop."""
        raise NotImplementedError

    def log_likelihood(
        self, seen: Float[Tensor, "pairs positions features"], texts: Sequence[str]
    ) -> Float[Tensor, " pairs"]:
        """log P(text | crop) per character, one text for each crop; `""` asks for P(no text).

        Raises:
            UsageError: see `check`.
        """
        raise NotImplementedError

    def read(self, seen: Float[Tensor, "crops positions features"]) -> list[str]:
        """The most likely text of each crop, greedily."""
        raise NotImplementedError


class TrOCR(Recogniser):
    """TrOCR (Li et al. 2021): a vision transformer and an autoregressive decoder.

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
        size, said = self.processing["size"], self.processing
        height, width = (size["height"], size["width"]) if isinstance(size, Mapping) else (size, size)
        mode = MODES[said.get("resample", Image.Resampling.BILINEAR)]
        return normalize(resize(crops, height, width, mode), said["image_mean"], said["image_std"])

    def encode(self, pixels: Tensor) -> Float[Tensor, "crops positions features"]:
        return self.model.encoder(pixels.to(self.model.dtype)).last_hidden_state

    def log_likelihood(
        self, seen: Float[Tensor, "pairs positions features"], texts: Sequence[str]
    ) -> Float[Tensor, " pairs"]:
        for text in dict.fromkeys(texts):
            self.check(text)
        ids = [[*self._tokens(text), self.end] for text in texts]
        longest = max(map(len, ids))
        said = torch.tensor([row + [self.end] * (longest - len(row)) for row in ids], device=seen.device)
        real = torch.tensor([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in ids]).to(seen)
        before = torch.cat([torch.full_like(said[:, :1], self.start), said[:, :-1]], 1)
        # A wider encoder reaches the decoder through a projection in some TrOCR-like models.
        states = self.model.enc_to_dec_proj(seen) if hasattr(self.model, "enc_to_dec_proj") else seen
        logits = self.model.decoder(input_ids=before, encoder_hidden_states=states, use_cache=False).logits
        each = logits.to(real.dtype).log_softmax(-1).gather(-1, said[..., None])[..., 0]
        return (each * real).sum(1) / characters(texts).to(real)

    def read(self, seen: Float[Tensor, "crops positions features"]) -> list[str]:
        states = self.model.enc_to_dec_proj(seen) if hasattr(self.model, "enc_to_dec_proj") else seen
        said = torch.full((len(seen), 1), self.start, device=seen.device)
        done = torch.zeros(len(seen), dtype=torch.bool, device=seen.device)
        for _ in range(self.model.config.decoder.max_position_embeddings - 2):
            logits = self.model.decoder(input_ids=said, encoder_hidden_states=states, use_cache=False).logits
            following = logits[:, -1].argmax(-1).masked_fill(done, self.end)
            said = torch.cat([said, following[:, None]], 1)
            done |= following == self.end
            if done.all():
                break
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in said[:, 1:].tolist()]


class PPOCR(Recogniser):
    """PP-OCRv5's server recogniser: convolutions, two transformer blocks and CTC.

    The mobile one and v6's small one are left out: their gradients all but vanish at random initialisation.

    Args:
        processing: the published `preprocessor_config.json`, whose `character_list` begins with CTC's blank.
        alphabet: the only characters that it may read; None: all that it knows.
    """

    kind: ClassVar[type[PreTrainedModel]] = PPOCRV5ServerRecForTextRecognition

    def __init__(self, model: PreTrainedModel, processing: Mapping[str, Any], alphabet: str | None = None) -> None:
        super().__init__()
        self.model, self.processing = model, processing
        known = {character: index for index, character in enumerate(processing["character_list"])}
        self.names, self.classes = list(processing["character_list"]), None
        if alphabet is not None:
            strange = [character for character in alphabet if character not in known]
            if strange or not alphabet:
                what = f"holds {strange[0]!r}, which this recogniser does not know" if strange else "is empty"
                raise UsageError(f"alphabet={alphabet} {what}: write each character that may be read, such as ABC")
            self.names = [self.names[0], *dict.fromkeys(alphabet)]
            self.classes = torch.tensor([known[name] for name in self.names])
        self.index = {character: index for index, character in enumerate(self.names)}
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: str, alphabet: str | None = None) -> PPOCR:
        model = load_pretrained(cls.kind, path, "recogniser")
        return cls(model, read_settings(path, "preprocessor_config.json", "recogniser"), alphabet)

    def check(self, text: str) -> None:
        strange = [character for character in text if character not in self.index]
        if strange:
            raise unreadable(text, strange[0])
        places = len(text) + sum(a == b for a, b in pairwise(text))  # CTC parts equal neighbours by a blank
        if places > self.places:
            raise too_long(text, f"needs {places} places", f"{self.places} places")

    @cached_property
    @torch.no_grad()
    def places(self) -> int:
        """How many characters and blanks it says of a crop, of whatever size: all are padded to one width."""
        height, width = (self.processing["pad_size"][side] for side in ("height", "width"))
        return self.encode(torch.zeros(1, 3, height, width, device=self.model.device)).shape[1]

    def pixels(self, crops: Float[Tensor, "crops 3 height width"]) -> Tensor:
        """As high as the model wants, as wide as the crop is then; narrower ones are padded with zeros."""
        said = self.processing
        height, full = said["size"]["height"], said["pad_size"]["width"]
        width = min(full, math.ceil(height * crops.shape[-1] / crops.shape[-2]))
        pixels = normalize(self.resized(crops, height, width), said["image_mean"], said["image_std"])
        return nn.functional.pad(pixels, (0, full - width))

    def resized(self, crops: Float[Tensor, "crops 3 _ _"], height: int, width: int) -> Float[Tensor, "crops 3 _ _"]:
        """Crops at the size that the model wants, its channels in the order that it wants."""
        return resize(crops, height, width, "bilinear")

    def encode(self, pixels: Tensor) -> Float[Tensor, "crops positions features"]:
        seen = self.logits(self.model.model(pixels.to(self.model.dtype)).last_hidden_state)
        return seen if self.classes is None else seen[..., self.classes.to(seen.device)]

    def logits(self, seen: Tensor) -> Float[Tensor, "crops positions classes"]:
        """The last linear layer's output, which CTC wants; the model itself ends in a softmax."""
        head = self.model.head
        return head.head(head.encoder(seen).last_hidden_state)

    def log_likelihood(
        self, seen: Float[Tensor, "pairs positions features"], texts: Sequence[str]
    ) -> Float[Tensor, " pairs"]:
        for text in dict.fromkeys(texts):
            self.check(text)
        targets = [torch.tensor([self.index[character] for character in text], dtype=torch.long) for text in texts]
        losses = nn.functional.ctc_loss(
            seen.log_softmax(-1).transpose(0, 1),
            nn.utils.rnn.pad_sequence(targets, batch_first=True).to(seen.device),
            torch.full((len(texts),), seen.shape[1]),
            torch.tensor([len(target) for target in targets]),
            reduction="none",
        )
        return -losses / characters(texts).to(seen)

    def read(self, seen: Float[Tensor, "crops positions features"]) -> list[str]:
        best = seen.argmax(-1)
        fresh = torch.cat([torch.ones_like(best[:, :1], dtype=torch.bool), best[:, 1:] != best[:, :-1]], 1)
        return [
            "".join(self.names[index] for index, keep in zip(row, new, strict=True) if keep and index != 0).strip()
            for row, new in zip(best.tolist(), fresh.tolist(), strict=True)
        ]


class PPOCRTiny(PPOCR):
    """PP-OCRv6's tiny recogniser: convolutions and CTC, of 1.1 M weights.

    Its preprocessing is OpenCV's: channels in the order BGR, a bilinear resize that is not antialiased. Rounding to 8
    bits, which has no gradient, is left out.
    """

    kind = PPOCRV6TinyRecForTextRecognition

    def resized(self, crops: Float[Tensor, "crops 3 _ _"], height: int, width: int) -> Float[Tensor, "crops 3 _ _"]:
        return resize(crops[:, [2, 1, 0]], height, width, "bilinear", pillow=False, antialias=False)

    def logits(self, seen: Tensor) -> Float[Tensor, "crops positions classes"]:
        head, line = self.model.head, seen.squeeze(2)
        line = head.act_fn(head.norm1(head.conv1(line)))
        line = head.act_fn(head.norm2(head.conv2(line)))
        return head.fc2(head.fc1(line.transpose(1, 2)))


FAMILIES: dict[str, type[TrOCR] | type[PPOCR]] = {
    "vision-encoder-decoder": TrOCR,
    "pp_ocrv5_server_rec": PPOCR,
    "pp_ocrv6_tiny_rec": PPOCRTiny,
}


def unreadable(text: str, what: str) -> UsageError:
    """What to answer for a text that a recogniser has no letters for."""
    return UsageError(
        f"the wanted text {text!r} holds {what!r}, which this recogniser cannot read: write it otherwise, such as in "
        "capitals, or take the prompt out"
    )


def too_long(text: str, needs: str, most: str) -> UsageError:
    """What to answer for a text that no recogniser's answer can hold."""
    return UsageError(
        f"the wanted text {text!r} {needs}, longer than the {most} that this recogniser reads: quote it in parts"
    )


def characters(texts: Sequence[str]) -> Tensor:
    """The length of each text, at least 1."""
    return torch.tensor([max(1, len(text)) for text in texts])


def load_recogniser(path: str, alphabet: str | None = None) -> Recogniser:
    """Load the recogniser in a folder or hub repository; its `config.json` says of which family it is.

    Args:
        alphabet: the only characters that it may read, of a family that has one class a character.
    """
    path = folder_or_id(path, "recogniser")
    family = read_settings(path, "config.json", "recogniser").get("model_type")
    if family not in FAMILIES:
        raise UsageError(f"recogniser {path}: model_type {family!r} is not supported; use one of {', '.join(FAMILIES)}")
    return FAMILIES[family].load(path, alphabet)
