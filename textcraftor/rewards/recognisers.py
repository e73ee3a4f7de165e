"""Text recognisers by what their files say of them."""

from __future__ import annotations

from pathlib import Path

from textcraftor.assets import folder_or_id
from textcraftor.errors import UsageError
from textcraftor.rewards.checkpoints import read_settings
from textcraftor.rewards.english_crnn import EnglishCRNN
from textcraftor.rewards.pp_ocr import PPOCR, PPOCRMobile, PPOCRSmall, PPOCRTiny
from textcraftor.rewards.reading import Recogniser
from textcraftor.rewards.trocr import TrOCR

PUBLISHED = Path(__file__).parent / "pp_ocrv6_tiny"  # PP-OCRv6 tiny with its published weights
FAMILIES: dict[str, type[TrOCR] | type[PPOCR]] = {
    "vision-encoder-decoder": TrOCR,
    "pp_ocrv5_server_rec": PPOCR,
    "pp_ocrv5_mobile_rec": PPOCRMobile,
    "pp_ocrv6_small_rec": PPOCRSmall,
    "pp_ocrv6_tiny_rec": PPOCRTiny,
}


def load_recogniser(path: str, alphabet: str | None = None) -> Recogniser:
    """Load the recogniser in a folder or hub repository, whose `config.json` says of which family it is, or EasyOCR's
    English one from its `.pth` file.

    Args:
        alphabet: the only characters that it may read, of a family that has one class a character.
    """
    if path.endswith(".pth"):
        return EnglishCRNN.load(path, alphabet)
    path = folder_or_id(path, "recogniser")
    family = read_settings(path, "config.json", "recogniser").get("model_type")
    if family not in FAMILIES:
        raise UsageError(f"recogniser {path}: model_type {family!r} is not supported; use one of {', '.join(FAMILIES)}")
    return FAMILIES[family].load(path, alphabet)
