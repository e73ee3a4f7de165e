"""PaddleOCR's recognisers: PP-OCRv5's server and mobile one, PP-OCRv6's small and tiny one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    PPOCRV5MobileRecForTextRecognition,
    PPOCRV5ServerRecForTextRecognition,
    PPOCRV6SmallRecForTextRecognition,
    PPOCRV6TinyRecForTextRecognition,
    PreTrainedModel,
)

from textcraftor.rewards.checkpoints import load_pretrained, read_settings
from textcraftor.rewards.ctc import CTC
from textcraftor.rewards.preprocessing import normalize, resize


class PPOCR(CTC):
    """PP-OCRv5's server recogniser: convolutions, two transformer blocks and CTC.

    Args:
        processing: the published `preprocessor_config.json`, whose `character_list` begins with CTC's blank.
        alphabet: the only characters that it may read; None: all that it knows.
    """

    kind: ClassVar[type[PreTrainedModel]] = PPOCRV5ServerRecForTextRecognition

    def __init__(self, model: PreTrainedModel, processing: Mapping[str, Any], alphabet: str | None = None) -> None:
        size = processing["pad_size"]
        super().__init__(processing["character_list"], (size["height"], size["width"]), alphabet)
        self.model, self.processing = model, processing
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: str, alphabet: str | None = None) -> PPOCR:
        model = load_pretrained(cls.kind, path, "recogniser")
        return cls(model, read_settings(path, "preprocessor_config.json", "recogniser"), alphabet)

    def pixels(self, crops: Float[Tensor, "crops 3 height width"]) -> Tensor:
        """Crops at the model's height, at most its width; narrower ones are padded with zeros."""
        settings = self.processing
        height, full = settings["size"]["height"], settings["pad_size"]["width"]
        width = min(full, math.ceil(height * crops.shape[-1] / crops.shape[-2]))
        pixels = normalize(self.resized(crops, height, width), settings["image_mean"], settings["image_std"])
        return nn.functional.pad(pixels, (0, full - width))

    def resized(self, crops: Float[Tensor, "crops 3 _ _"], height: int, width: int) -> Float[Tensor, "crops 3 _ _"]:
        """Crops at the size that the model wants, its channels in the order that it wants."""
        return resize(crops, height, width, "bilinear")

    def classify(self, pixels: Tensor) -> Float[Tensor, "crops positions classes"]:
        return self.logits(self.model.model(pixels.to(self.model.dtype)).last_hidden_state)

    def logits(self, seen: Tensor) -> Float[Tensor, "crops positions classes"]:
        """The last linear layer's output, which CTC wants; the model itself ends in a softmax."""
        head = self.model.head
        return head.head(head.encoder(seen).last_hidden_state)


class PPOCRMobile(PPOCR):
    """PP-OCRv5's mobile recogniser: its head and preprocessing are the server one's."""

    kind = PPOCRV5MobileRecForTextRecognition


class PPOCRSmall(PPOCR):
    """PP-OCRv6's small recogniser.

    Its preprocessing is OpenCV's: channels in the order BGR, a bilinear resize that is not antialiased. Rounding to 8
    bits, which has no gradient, is left out.
    """

    kind = PPOCRV6SmallRecForTextRecognition

    def resized(self, crops: Float[Tensor, "crops 3 _ _"], height: int, width: int) -> Float[Tensor, "crops 3 _ _"]:
        return resize(crops[:, [2, 1, 0]], height, width, "bilinear", pillow=False, antialias=False)


class PPOCRTiny(PPOCRSmall):
    """PP-OCRv6's tiny recogniser: convolutions and CTC, of 1.1 M weights."""

    kind = PPOCRV6TinyRecForTextRecognition

    def logits(self, seen: Tensor) -> Float[Tensor, "crops positions classes"]:
        head, line = self.model.head, seen.squeeze(2)
        line = head.act_fn(head.norm1(head.conv1(line)))
        line = head.act_fn(head.norm2(head.conv2(line)))
        return head.fc2(head.fc1(line.transpose(1, 2)))
