"""EasyOCR's English reader, second generation: convolutions, two LSTMs in both directions, CTC (Shi et al. 2015)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from textcraftor.rewards.checkpoints import build, load_state
from textcraftor.rewards.ctc import CTC
from textcraftor.rewards.preprocessing import resize

LAYOUT = "EasyOCR's english_g2.pth (FeatureExtraction.*, SequenceModeling.*, Prediction.*)"
NAMES = [
    "blank",
    *"0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €",
    *"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
]
SIZE = 64, 448  # height and width of a line in pixels; wider ones are squeezed
WIDTH = 256  # features of the convolutions and of an LSTM
GREY = 0.299, 0.587, 0.114  # shares of red, green and blue


def convolutions(width: int) -> nn.Sequential:
    """A VGG for lines: 16 times less high, 4 times less wide; with the published key names."""
    eighth, quarter, half = width // 8, width // 4, width // 2
    return nn.Sequential(
        nn.Conv2d(1, eighth, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(eighth, quarter, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(quarter, half, 3, 1, 1), nn.ReLU(), nn.Conv2d(half, half, 3, 1, 1), nn.ReLU(), nn.MaxPool2d((2, 1)),
        nn.Conv2d(half, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d((2, 1)),
        nn.Conv2d(width, width, 2), nn.ReLU(),
    )  # fmt: skip


class Features(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ConvNet = convolutions(width)

    def forward(self, pixels: Float[Tensor, "crops 1 height width"]) -> Float[Tensor, "crops positions features"]:
        return self.ConvNet(pixels).mean(2).transpose(1, 2)


class BothWays(nn.Module):
    """An LSTM in both directions and a linear layer."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inputs, hidden, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden, hidden)

    def forward(self, x: Float[Tensor, "crops positions features"]) -> Float[Tensor, "crops positions hidden"]:
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN's has no gradient outside training
            return self.linear(self.rnn(x)[0])


class Network(nn.Module):
    """The published network, by its own key names.

    Args:
        width: features of the last convolution.
        hidden: features of an LSTM in one direction.
        classes: CTC's blank among them.
    """

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.FeatureExtraction = Features(width)
        self.SequenceModeling = nn.Sequential(BothWays(width, hidden), BothWays(hidden, hidden))
        self.Prediction = nn.Linear(hidden, classes)

    def forward(self, pixels: Float[Tensor, "crops 1 height width"]) -> Float[Tensor, "crops positions classes"]:
        return self.Prediction(self.SequenceModeling(self.FeatureExtraction(pixels)))


class EnglishCRNN(CTC):
    """97 classes: digits, capitals, small letters, ASCII's signs, the euro.

    EasyOCR's second try of an unclear line, with more contrast, is left out.
    """

    channels = 1

    def __init__(self, network: nn.Module, alphabet: str | None = None) -> None:
        super().__init__(NAMES, SIZE, alphabet)
        self.network = network
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: str, alphabet: str | None = None) -> EnglishCRNN:
        """Load `english_g2.pth`: a local file, `hf://owner/repo/file` or an address."""
        state = {key.removeprefix("module."): value for key, value in load_state(path, "recogniser").items()}
        return cls(build(lambda: Network(WIDTH, WIDTH, len(NAMES)), state, path, LAYOUT), alphabet)

    def pixels(self, crops: Float[Tensor, "crops 3 height width"]) -> Float[Tensor, "crops 1 _ _"]:
        """Grey, resized as OpenCV does bilinearly, from -1 to 1; narrower crops are continued by their last column."""
        height, full = self.size
        width = max(1, min(full, int(height * crops.shape[-1] / crops.shape[-2])))
        grey = (crops * torch.tensor(GREY).to(crops).view(3, 1, 1)).sum(1, keepdim=True)
        lines = 2 * resize(grey, height, width, "bilinear", pillow=False, antialias=False) - 1
        return torch.cat([lines, lines[..., -1:].expand(-1, -1, -1, full - width)], -1)

    def classify(self, pixels: Tensor) -> Float[Tensor, "crops positions classes"]:
        return self.network(pixels.to(next(self.network.parameters()).dtype))
