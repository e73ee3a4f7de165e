"""What a scorer costs beside its model: `python scripts/benchmark_scorers.py [--device cuda]`.

HPSv2's architecture (ViT-H-14) with random weights, 16 pictures of 512 px, 16 prompts. Preprocessing and text handling
(cleaning, tokenising, looking features up) are compared with the image tower's own forward pass, in alternating
rounds, median.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from results import new_parser, show
from transformers import CLIPModel, CLIPTokenizer

from textcraftor.rewards.hpsv2 import HPSv2
from textcraftor.rewards.open_clip import architecture_config


def seconds(device: str, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def letter_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer without merges: every prompt becomes its letters, which is the longest text handling takes."""
    ends = ["<|startoftext|>", "<|endoftext|>"]
    letters = [f"{chr(code)}{end}" for code in range(33, 127) for end in ("", "</w>")]
    vocabulary = {token: index for index, token in enumerate([*letters, *ends])}
    with tempfile.TemporaryDirectory() as folder:
        CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
        return CLIPTokenizer.from_pretrained(folder)


@torch.no_grad()
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--architecture", default="ViT-H-14")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=512, help="side of the pictures in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    scorer = HPSv2(CLIPModel(architecture_config(arguments.architecture)), letter_tokenizer(), open_clip=True)
    scorer.to(arguments.device)
    images = torch.rand(arguments.batch, 3, arguments.size, arguments.size, device=arguments.device)
    prompts = [f"a picture of thing number {index}, with “quotes” &amp; all" for index in range(arguments.batch)]
    pixels = scorer.pixels(images)
    scorer.texts(prompts)
    parts: dict[str, Callable[[], object]] = {
        "image tower, forward": lambda: scorer.embed_pixels(pixels),
        "preprocessing": lambda: scorer.pixels(images),
        "cleaning and tokenising": lambda: scorer.tokens(prompts),
        "looking text features up": lambda: scorer.texts(prompts),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(arguments.rounds):
        for name, work in parts.items():
            times[name].append(seconds(arguments.device, work))
    median = {name: statistics.median(values) for name, values in times.items()}
    floor, *rest = median.values()
    rows = [[name, value, 100 * value / floor] for name, value in median.items()]
    rows.append(["all but the model", sum(rest), 100 * sum(rest) / floor])
    columns = ["part", (f"seconds (median of {arguments.rounds})", ".4f"), ("% of the forward pass", ".2f")]
    show("scoring", "parts", columns, rows, arguments.store)


if __name__ == "__main__":
    main()
