"""EasyOCR's English reader: its network equals its package's, its preprocessing what OpenCV and it make of a line.

`english_crnn.json` was written by `python -m parity.reference_easyocr`, which says how.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from parity import tiny
from torch.nn.functional import interpolate

from textcraftor.errors import UsageError
from textcraftor.rewards.english_crnn import NAMES, EnglishCRNN, Network
from textcraftor.rewards.ocr import OcrLegibility
from textcraftor.rewards.recognisers import load_recogniser

GOLDEN = json.loads((Path(__file__).parent / "english_crnn.json").read_text())


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A checkpoint as published: under `module.`, as a network on several GPUs saves it."""
    shapes = {key: tuple(one.shape) for key, one in Network(256, 256, len(NAMES)).state_dict().items()}
    file = tmp_path_factory.mktemp("crnn") / "english_g2.pth"
    torch.save({f"module.{key}": value for key, value in tiny.crnn_state(shapes).items()}, file)
    return str(file)


@pytest.fixture(scope="module")
def reader(file):
    return load_recogniser(file)


def test_its_network_equals_its_packages(reader):
    with torch.no_grad():
        logits = reader.encode(tiny.line())
    assert list(logits.shape) == GOLDEN["shape"]
    expected = torch.tensor(GOLDEN["logits"])
    torch.testing.assert_close(torch.from_numpy(tiny.sample(logits.numpy())), expected, rtol=1e-4, atol=1e-4)


def test_its_preprocessing_is_grey_not_antialiased_and_continued(reader):
    crop = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    grey = (crop * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    expected = 2 * interpolate(grey, size=(64, 106), mode="bilinear") - 1
    pixels = reader.pixels(crop)
    assert pixels.shape == (1, 1, 64, 448)
    torch.testing.assert_close(pixels[..., :106], expected, atol=5e-5, rtol=0)
    assert torch.equal(pixels[..., 106:], pixels[..., 105:106].expand(-1, -1, -1, 342))


def test_it_passes_a_gradient_and_refuses_what_it_cannot_read(file):
    reader = load_recogniser(file, "ABC")
    reward, images = OcrLegibility(reader, [[1, 1]]), torch.rand(1, 3, 32, 64).requires_grad_(True)
    reward(images, ['"CAB"']).sum().backward()
    assert images.grad.abs().max() > 0
    assert reader.names == ["blank", "A", "B", "C"]
    with pytest.raises(UsageError, match="'D', which this recogniser cannot read"):
        reward.check(['"BAD"'])
    with pytest.raises(UsageError, match="longer than the 111 places"):
        reward.check([f'"{"A" * 57}"'])


def test_a_damaged_file_is_refused(file, tmp_path):
    state = torch.load(file, weights_only=True)
    del state["module.Prediction.bias"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(UsageError, match=r"key 'Prediction.bias' is missing; expected EasyOCR's english_g2.pth"):
        EnglishCRNN.load(str(tmp_path / "cut.pth"))
