"""OCR legibility: what is wanted, where it is looked for, and that the gradient writes it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import (
    PPOCRV5MobileRecConfig,
    PPOCRV5ServerDetConfig,
    PPOCRV5ServerDetForObjectDetection,
    PPOCRV5ServerRecConfig,
    PPOCRV5ServerRecForTextRecognition,
    PPOCRV6SmallRecConfig,
)

from tests.conftest import WEIGHTS
from textcraftor.errors import UsageError
from textcraftor.rewards.ocr import Detector, OcrLegibility, agreement, overlap, quoted, windows
from textcraftor.rewards.pp_ocr import PPOCR, PPOCRMobile, PPOCRSmall
from textcraftor.rewards.recognisers import FAMILIES, load_recogniser
from textcraftor.toybox.render import render
from textcraftor.toybox.scenes import Scene, Shape, Word

CHARACTERS = ["blank", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", " "]
PROCESSING = {
    "size": {"height": 48, "width": 320},
    "pad_size": {"height": 48, "width": 320},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "character_list": CHARACTERS,
}


# What the published detector's config adds to transformers' defaults: (kernel, stride, padding) of its convolutions.
DETECTOR = {
    "scale_factor_list": [1, 2, 4, 8],
    "kernel_list": [3, 2, 2],
    "intraclass_block_config": {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]}
    | {
        f"{name}_{ratio}ratio": [kernel, [1, 1], [side // 2 for side in kernel]]
        for ratio, size in (("long", 7), ("mid", 5), ("short", 3))
        for name, kernel in (
            ("vertical_long_to_small_conv", [size, 1]),
            ("horizontal_small_to_long_conv", [1, size]),
            ("symmetric_conv_long", [size, size]),
        )
    },
}


def picture(text: str | None, row: str = "top") -> torch.Tensor:
    word = Word(text, row) if text else None
    scene = Scene("white", (Shape("red", "circle", "small", "center"),), word)
    return torch.from_numpy(render(scene)).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def ocr():
    return OcrLegibility(load_recogniser(str(WEIGHTS / "recogniser")), [[4, 1]])


@pytest.fixture(scope="module")
def ppocr():
    """The published architecture with a shorter alphabet and random weights."""
    torch.manual_seed(0)
    model = PPOCRV5ServerRecForTextRecognition(PPOCRV5ServerRecConfig(head_out_channels=len(CHARACTERS)))
    return PPOCR(model, PROCESSING)


def test_every_quoted_text_is_wanted_and_apostrophes_are_none():
    assert quoted('a sign "OPEN" and a door "it\'s 24 h"') == ["OPEN", "it's 24 h"]
    assert quoted("a sign that says “Hello”") == ["Hello"]
    assert quoted("the cat's 'hat' and 12\" of snow") == []


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ('a 12" record that says "KKQ"', ["KKQ"]),
        ('"KKQ" on a 12" record', ["KKQ"]),
        ('a 7" and a 12" record, "KKQ" and "AB 12"', ["KKQ", "AB 12"]),
        ('a 12" by 8½" print', []),
        ('a 3½" disk:"KKQ"', ["KKQ"]),
        ("a 12” record that says “KKQ”", ["KKQ"]),
        ('a door 12 "EXIT"', ["EXIT"]),
        ('"12"', ["12"]),
    ],
)
def test_an_inch_mark_is_no_quote(prompt, wanted):
    assert quoted(prompt) == wanted


def test_windows_overlap_by_half_and_cover_the_picture():
    boxes = windows(64, 64, [[4, 1]])
    assert [box[0] for box in boxes] == [0, 8, 16, 24, 32, 40, 48]
    assert all(box[2] - box[0] == 16 and box[3] == 64 for box in boxes)
    covered = np.zeros((48, 80))
    for top, left, bottom, right in windows(48, 80, [[2, 3]]):
        covered[top:bottom, left:right] += 1
    assert covered[:, :78].min() >= 1


def test_the_right_word_is_likelier_than_any_wrong_one(ocr):
    prompts = [f'a red circle with the word "{text}"' for text in ("KQX", "KQY", "AAA", "KQ")]
    scores = ocr(picture("KQX").expand(4, -1, -1, -1), prompts)
    assert scores.argmax() == 0
    assert scores[0] > scores[1:].max() + 0.3
    assert (scores <= 0).all()


def test_without_quotes_the_score_is_zero_and_so_is_the_gradient(ocr):
    images = torch.cat([picture("KQX"), picture(None)]).requires_grad_(True)
    scores = ocr(images, ["a red circle", 'a red circle with the word "AB"'])
    scores.sum().backward()
    assert scores[0] == 0
    assert images.grad[0].abs().max() == 0
    assert images.grad[1].abs().max() > 0


def test_several_texts_score_their_mean(ocr):
    images = picture("KQX")
    both = ocr(images, ['"KQX" and "AB"'])
    each = [ocr(images, [f'"{text}"']) for text in ("KQX", "AB")]
    torch.testing.assert_close(both, torch.stack(each).mean(0))


def test_unwanted_text_is_a_weight_of_its_own(ocr):
    strict = OcrLegibility(ocr.recogniser, [[4, 1]], unwanted=1.0)
    images = torch.cat([picture("KQX"), picture(None)])
    plain = ["a red circle"] * 2
    assert ocr(images, plain).abs().max() == 0
    with_text, without = strict(images, plain)
    assert with_text < without - 0.1
    # Text that was asked for is not held against the picture.
    wanted = ['a red circle with the word "KQX"']
    assert strict(images[:1], wanted) > ocr(images[:1], wanted) - 0.05


def test_the_gradient_writes_the_word(ocr):
    """Ascent on the pixels of an empty picture alone makes the recogniser read the word."""
    images, prompt = picture(None), ['a red circle with the word "KQX"']
    pixels = images.clone().requires_grad_(True)
    before = ocr(images, prompt)
    for _ in range(10):
        (gradient,) = torch.autograd.grad(ocr(pixels, prompt).sum(), pixels)
        pixels = (pixels + 2 * gradient / gradient.norm()).clamp(0, 1).detach().requires_grad_(True)
    assert ocr(pixels, prompt) > before + 1
    assert ocr.measure(pixels.detach(), prompt)["accuracy"] > ocr.measure(images, prompt)["accuracy"]


def test_the_measure_is_one_minus_normalised_edit_distance(ocr):
    found = ocr.measure(torch.cat([picture("KQX")] * 3), ['"KQX"', '"KQY"', "no text"])["accuracy"]
    assert found[0] == 1
    assert found[1] == pytest.approx(2 / 3)
    assert found[2].isnan()
    assert agreement("kitten", "sitting") == pytest.approx(1 - 3 / 6)
    assert agreement("ab", "xxxxxxx") == 0


def test_ctc_likelihood_equals_the_sum_over_alignments(ppocr):
    """Against brute force: every path of a short output that collapses to the text."""
    logits = torch.randn(1, 4, len(CHARACTERS), generator=torch.Generator().manual_seed(0))
    log_probabilities, total = logits.log_softmax(-1)[0], torch.tensor(0.0)
    symbols = [0, 1, 2]
    for path in np.stack(np.meshgrid(*[symbols] * 4), -1).reshape(-1, 4):
        collapsed = [int(s) for i, s in enumerate(path) if s != 0 and (i == 0 or s != path[i - 1])]
        if collapsed == [1, 2]:
            total = total + log_probabilities[range(4), path.tolist()].sum().exp()
    torch.testing.assert_close(ppocr.log_likelihood(logits, ["AB"])[0], total.log() / 2)


def test_ppocr_passes_a_gradient_and_refuses_what_it_cannot_read(ppocr):
    reward = OcrLegibility(ppocr, [[1, 1], [2, 1]])
    images = picture("KQX").requires_grad_(True)
    reward(images, ['"KQX"']).sum().backward()
    assert images.grad.abs().max() > 0
    with pytest.raises(UsageError, match="'q', which this recogniser cannot read"):
        reward.check(['"Kq"'])
    assert ppocr.places == ppocr.encode(ppocr.pixels(picture("KQX"))).shape[1] == 40
    reward.check([f'"{"AB" * 20}"', f'"{"A" * 20}"'])
    for text in ("AB" * 20 + "C", "A" * 21):  # a blank parts two that are equal
        with pytest.raises(UsageError, match=rf"prompt 'x \"{text}\"': .* longer than the 40 places"):
            reward.check([f'x "{text}"'])
        with pytest.raises(UsageError, match="longer than the 40 places"):
            reward(picture("KQX"), [f'"{text}"'])


@pytest.mark.parametrize(("text", "letter"), [("kkq", "k"), ("KKq", "q"), ("K Q", " "), ("K7", "7"), ("Ä", "Ä")])
def test_trocr_refuses_letters_that_it_does_not_know(ocr, text, letter):
    """All of them were one token, so that other texts of that length had one score."""
    for refused in (lambda prompts: ocr.check(prompts), lambda prompts: ocr(picture("KKQ"), prompts)):
        with pytest.raises(UsageError, match=rf"{text!r} holds {letter!r}, which this recogniser cannot read"):
            refused([f'a sign that says "{text}"'])


def test_trocr_refuses_what_is_longer_than_it_can_read_and_names_the_prompt(ocr):
    """Eight positions, one of them the end."""
    prompts = [f'"{"ABCDEFG"[:length]}"' for length in range(1, 8)]
    ocr.check(prompts)
    assert ocr(picture("KQX").expand(7, -1, -1, -1), prompts).isfinite().all()
    with pytest.raises(UsageError, match=r"prompt 'says \"ABCDEFGH\"': .* 8 tokens, longer than the 7 tokens"):
        ocr.check(["a red circle", 'says "ABCDEFGH"'])
    with pytest.raises(UsageError, match="longer than the 7 tokens"):
        ocr(picture("KQX"), ['says "ABCDEFGH"'])


def test_ppocrs_logits_are_those_behind_the_models_own_softmax(ppocr):
    pixels = ppocr.pixels(picture("KQX"))
    with torch.no_grad():
        expected = ppocr.model(pixels).last_hidden_state
    torch.testing.assert_close(ppocr.encode(pixels).softmax(-1), expected)


STRIDES = ([1, 1], [2, 1], [2, 1], [1, 2], [2, 1])  # of a recogniser: 16 times less high, 4 times less wide
MOBILE = {"model_type": "pp_lcnet_v3", "stem_channels": 8, "out_features": ["stage5"]}
MOBILE["block_configs"] = [[[3, 8, 8, stride, False]] for stride in STRIDES]


@pytest.mark.parametrize(
    ("kind", "config", "backbone"),
    [
        (PPOCRMobile, PPOCRV5MobileRecConfig, {"backbone_config": MOBILE}),
        (PPOCRSmall, PPOCRV6SmallRecConfig, {}),
    ],
)
def test_the_smaller_ppocrs_give_the_logits_behind_their_own_softmax_and_a_gradient(kind, config, backbone):
    torch.manual_seed(0)
    reader = kind(kind.kind(config(head_out_channels=len(CHARACTERS), **backbone)), PROCESSING)
    images = picture("KQX").requires_grad_(True)
    seen = reader.encode(reader.pixels(images))
    expected = reader.model(reader.pixels(images)).last_hidden_state
    torch.testing.assert_close(seen.softmax(-1), expected)
    reader.log_likelihood(seen, ["AB"]).sum().backward()
    assert images.grad.abs().max() > 0
    assert FAMILIES[config.model_type] is kind


def test_a_recogniser_is_chosen_by_its_config_and_others_are_refused(ppocr, tmp_path):
    ppocr.model.save_pretrained(tmp_path / "ppocr")
    (tmp_path / "ppocr" / "preprocessor_config.json").write_text(json.dumps(PROCESSING))
    pixels = ppocr.pixels(picture("KQX"))
    torch.testing.assert_close(load_recogniser(str(tmp_path / "ppocr")).encode(pixels), ppocr.encode(pixels))
    with pytest.raises(UsageError, match="model_type 'clip' is not supported"):
        load_recogniser(str(WEIGHTS / "clip_constraint"))


def test_the_detector_finds_axis_aligned_boxes_around_text_pixels():
    torch.manual_seed(0)
    model = PPOCRV5ServerDetForObjectDetection(PPOCRV5ServerDetConfig(**DETECTOR))
    detector = Detector(model, {"image_mean": [0.406, 0.456, 0.485], "image_std": [0.225, 0.224, 0.229]})
    assert isinstance(detector(torch.rand(1, 3, 64, 64))[0], list)
    probability = np.zeros((64, 64))
    probability[10:20, 5:45] = 1
    (box,) = detector._boxes(probability)
    assert box == (4, 0, 26, 51)
    assert overlap(box, (0, 0, 10, 10))
    assert not overlap(box, (30, 0, 40, 10))


def test_a_detectors_boxes_replace_the_grid_where_it_finds_text(ocr):
    class Top(Detector):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def forward(self, images):
            return [[(0, 0, 16, 64)], []]

    reward = OcrLegibility(ocr.recogniser, [[4, 1]], detector=Top())
    images, prompts = torch.cat([picture("KQX"), picture("KQX", "bottom")]), ['"KQX"'] * 2
    scores = reward(images, prompts)
    assert scores[0] > -0.1  # one box, the right one
    torch.testing.assert_close(scores[1], ocr(images[1:], prompts[1:])[0])


@pytest.mark.parametrize(
    ("settings", "line"),
    [({"unwanted": -1.0}, "unwanted=-1.0"), ({"grid": []}, "grid="), ({"grid": [[0, 1]]}, "grid=")],
)
def test_wrong_settings_are_refused(ocr, settings, line):
    with pytest.raises(UsageError, match=line):
        OcrLegibility(ocr.recogniser, **{"grid": [[4, 1]]} | settings)
