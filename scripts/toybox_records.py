"""Captioned pictures of the toybox's world: `python scripts/toybox_records.py data/world`.

A folder of PNGs with `metadata.jsonl`: the ground truth as found on the web (facts missing or wrong), and beside it a
short and a descriptive caption that are true. What a captioner would have to find out is known here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from textcraftor.toybox.world2.captions import alt, descriptive, short
from textcraftor.toybox.world2.render import render
from textcraftor.toybox.world2.scenes import Split, sample_scene


def write_records(folder: Path, count: int, seed: int, split: Split = "train", word_probability: float = 0.5) -> None:
    """Draw scenes, render them and say what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        scene = sample_scene(rng, split, word_probability)
        name = f"{index:05d}.png"
        Image.fromarray((render(scene) * 255).round().astype(np.uint8)).save(folder / name)
        told = {"short": short(scene, say_word=bool(rng.random() < 0.6)), "descriptive": descriptive(scene)}
        row = {
            "file_name": name,
            "caption": alt(scene, rng),
            "synthetic": [{"kind": kind, "text": text} for kind, text in told.items()],
            "quoted": [scene.word.text] if scene.word else [],
        }
        lines.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=71)
    parser.add_argument("--words", type=float, default=0.5, help="share of scenes with a word")
    arguments = parser.parse_args()
    write_records(arguments.folder, arguments.count, arguments.seed, word_probability=arguments.words)


if __name__ == "__main__":
    main()
