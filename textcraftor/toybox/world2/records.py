"""Captioned pictures of the world, as a data set.

A folder of PNGs with `metadata.jsonl`: the ground truth as found on the web (facts missing or wrong), and beside it a
short and a descriptive caption that are true. What a captioner would have to find out is known here.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from textcraftor.toybox.world2.captions import alt, descriptive, short
from textcraftor.toybox.world2.render import render
from textcraftor.toybox.world2.scenes import Split, sample_scene


def write_records(folder: Path, count: int, seed: int, split: Split = "train", word_probability: float = 0.5) -> None:
    """Draw scenes, render them and say what they show.

    Args:
        count: of pictures.
        split: `train`, or one with pairs of colour and shape and words that training never shows.
        word_probability: the share of scenes with a word.
    """
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
            **told,  # columns of their own, so that they can be prompts: prompts.column=descriptive
        }
        lines.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
