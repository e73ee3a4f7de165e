"""The second judge of letters: a published reader reads both worlds' words, and none but those that stand there."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from measure_reader import letters_read, worlds

from textcraftor.toybox.judge import Judge
from textcraftor.toybox.published_reader import share_read
from textcraftor.toybox.render import render
from textcraftor.toybox.scenes import LETTERS, Scene, Shape, Word


def picture(text: str | None, row: str = "top") -> torch.Tensor:
    word = Word(text, row) if text else None
    return torch.from_numpy(render(Scene("white", (Shape("red", "circle", "small", "center"),), word))).permute(2, 0, 1)


@pytest.mark.parametrize("world", ["world 1", "world 2, all styles"])
def test_it_reads_rendered_words(world):
    pictures = worlds()[world]
    assert letters_read([next(pictures) for _ in range(40)], LETTERS) > 0.98


def test_letters_that_are_missing_wrong_or_too_many_count_against_a_picture():
    """1 - edit distance / length of the longer text; nothing where no word is wanted."""
    wanted = [("KQX", None), ("KQY", "top"), ("KQ", "top"), ("KQXZ", "top"), ("KQX", "bottom"), (None, None)]
    shares = share_read(picture("KQX").expand(len(wanted), -1, -1, -1), wanted)
    np.testing.assert_allclose(shares, [1, 2 / 3, 2 / 3, 3 / 4, 0, np.nan], atol=1e-12)
    assert np.isnan(share_read(picture("KQX")[None], [(None, None)])).all()
    assert share_read(picture(None)[None], [("KQX", None)]) == 0


def test_the_judge_asks_it_beside_its_own_reading():
    images = torch.stack([picture("KQX"), picture("KQX", "bottom"), picture(None), picture("KQX")])
    prompts = ['a red circle with the word "KQX"', 'a red circle with the word "KQY" at the bottom']
    figures = Judge()(images, [*prompts, prompts[0], "a red circle"])
    assert list(figures) == ["faithfulness", "letters", "taste", "read"]
    np.testing.assert_allclose(figures["read"], [1, 2 / 3, 0, np.nan], atol=1e-12)
    np.testing.assert_allclose(figures["read"], figures["letters"], atol=1e-12)


def test_legible_trains_by_it_and_the_report_judges_by_it(go):
    """The judge's figure stands beside the reward's own, before and after."""
    quicker = ("sampling.steps=2", "training.sampling.steps=2", "gradient.k=1", "training.steps=1")
    folder = go("run", "rewards=legible", "ocr=published", "prompts=words", *quicker)
    assert "pp_ocrv6_tiny" in (folder / "config.yaml").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["difference"]["judge/read"].keys() == summary["difference"]["ocr/accuracy"].keys()
    assert "judge/read" in (folder / "report.html").read_text()
