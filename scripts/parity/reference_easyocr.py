"""EasyOCR's English network as its package has it, with weights by formula: the figures that a test compares with.

python -m venv .parity/easyocr
.parity/easyocr/bin/pip install torch==2.13.0 numpy==2.4.6
.parity/easyocr/bin/pip install --no-deps torchvision==0.28.0 easyocr==1.7.2
PYTHONPATH=scripts .parity/easyocr/bin/python -m parity.reference_easyocr
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import torch

from parity import tiny
from parity.runner import without_torchvision_ops

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "rewards" / "english_crnn.json"


def published_network() -> torch.nn.Module:
    """Its module alone: the package itself wants OpenCV and more."""
    without_torchvision_ops()
    package = ModuleType("easyocr")
    package.__path__ = importlib.util.find_spec("easyocr").submodule_search_locations
    sys.modules["easyocr"] = package
    from easyocr.model.vgg_model import Model

    return Model(input_channel=1, output_channel=256, hidden_size=256, num_class=97)


def main() -> None:
    network = published_network().eval()
    network.load_state_dict(tiny.crnn_state({key: tuple(one.shape) for key, one in network.state_dict().items()}))
    with torch.no_grad():
        logits = network(tiny.line(), "")
    figures = {"shape": list(logits.shape), "logits": [float(f"{one:.6g}") for one in tiny.sample(logits.numpy())]}
    GOLDEN.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
