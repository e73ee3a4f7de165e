"""Letter data: what the caption quotes is what is written, in its kind, share and place; every sign is counted."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from textcraftor.cli import call
from textcraftor.data.letters import COLORS, FontPainter, Texts
from textcraftor.data.records import Records
from textcraftor.errors import UsageError
from textcraftor.toybox.judge import Judge
from textcraftor.toybox.scenes import is_unseen_word


def test_texts_come_in_their_shares():
    texts = Texts({"word": 0.4, "number": 0.2, "series": 0.4}, length=(3, 5))
    drawn = [texts.draw(np.random.default_rng(seed)) for seed in range(2000)]
    counts = Counter(kind for kind, _ in drawn)
    assert counts["word"] / 2000 == pytest.approx(0.4, abs=0.03)
    assert counts["number"] / 2000 == pytest.approx(0.2, abs=0.03)
    assert all(text.isdigit() == (kind == "number") for kind, text in drawn)
    assert all(3 <= len(text) <= 5 for kind, text in drawn if kind != "word")
    assert drawn[7] == texts.draw(np.random.default_rng(7))


def test_fonts_write_where_and_in_what_colour_the_detailed_caption_says(tmp_path):
    Image.new("RGB", (30, 60), (12, 200, 99)).save(tmp_path / "found.png")
    paint = FontPainter(96, 128, backgrounds=str(tmp_path))
    seen = Counter[str]()
    for seed in range(30):
        picture, basic, detailed = paint("number", "4711", np.random.default_rng(seed))
        assert picture.size == (128, 96)
        assert basic == 'a picture with the number "4711"'
        pixels = np.array(picture).reshape(96, 128, 3).astype(int)
        ink = next(name for name in COLORS if f" {name} letters" in detailed)
        near = np.abs(pixels - np.array(Image.new("RGB", (1, 1), COLORS[ink]))[0, 0]).sum(-1) < 10
        assert near.any()
        middle = np.nonzero(near)[0].mean() / 96
        assert middle == pytest.approx(
            {"top": 0.2, "center": 0.5, "bottom": 0.8}[detailed.split(" of ")[0].split()[-1]], abs=0.05
        )
        seen["found" if detailed.endswith("of a photo") else "plain"] += 1
        if detailed.endswith("of a photo"):
            assert (pixels[48, 0] == (12, 200, 99)).all()
    assert seen["found"] > 5
    assert seen["plain"] > 5


def test_the_command_writes_a_data_set_that_the_judge_reads(tmp_path):
    """Every word stands in its picture letter by letter; none is one that training never shows."""
    folder = call("letters", ["count=40", f"run_dir={tmp_path / 'letters'}"])
    records = Records.read(folder)
    texts = [record.quoted[0] for record in records.records]
    assert all(f'"{text}"' in record.caption for text, record in zip(texts, records.records, strict=True))
    assert not any(map(is_unseen_word, texts))
    pictures = (
        torch.stack([torch.from_numpy(np.array(records.picture(i))) for i in range(40)]).permute(0, 3, 1, 2) / 255
    )
    letters = Judge()(pictures, [record.synthetic["descriptive"][0] for record in records.records])["letters"]
    assert np.nanmean(letters) == 1.0
    assert json.loads((folder / "coverage.json").read_text()) == Counter("".join(texts))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["count=0"], "count=0 must be at least 1"),
        (["model=sd15", "model.letters.texts.share.word=-1"], r"texts.share=.* must give word, number, series"),
        (["model=sd15", "+model.letters.texts.words=nowhere"], "texts.words=nowhere does not exist"),
        (["model=sd15", "model.letters.painter.fonts=[nowhere.ttf]"], "painter: nowhere.ttf does not exist"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, overrides, message):
    with pytest.raises((UsageError, Exception), match=message):
        call("letters", [*overrides, f"run_dir={tmp_path / 'x'}"])
    assert not (tmp_path / "x").exists()
