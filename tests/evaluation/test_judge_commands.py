"""`judge=` from the command's keys: a server and small models answer, and whatever cannot work is refused before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from transformers import (
    AutoProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
    YolosConfig,
    YolosForObjectDetection,
)

from tests.captioning.tiny_models import byte_level_tokenizer, save_llava
from tests.conftest import PROMPTS, WEIGHTS
from tests.inference.test_mix import make_run
from tests.servers import told
from textcraftor.captioning.understanding import AskedModel
from textcraftor.errors import UsageError
from textcraftor.evaluation.judging.base import Asked, content_of
from textcraftor.evaluation.judging.detector import GREY, Detector, cut_out
from textcraftor.evaluation.judging.geneval import Detection
from textcraftor.evaluation.judging.vlm import Likelihood
from textcraftor.evaluation.rating import read_ratings
from textcraftor.evaluation.run import check, run
from textcraftor.evaluation.score import run as score
from textcraftor.evaluation.suite import read_rows_of
from textcraftor.inference.pictures import save_png
from textcraftor.rewards.preprocessing import from_pil
from textcraftor.rewards.vqascore import VQAScore
from textcraftor.toybox.judge import Judge

SMALL = ("limit=1", "seeds=[0,3]", "sampling.steps=2", "rewards=aesthetic", "batch_size=2", "device=cpu")
LABELS = {0: "bird", 1: "mouse"}


def asking(server, *overrides: str) -> tuple[str, ...]:
    model = ("judge=vlm", "understander=endpoint", f"understander.url={server.url}", "understander.model=judge")
    return (*SMALL, *model, "understander.concurrent=1", "understander.attempts=2", *overrides)


def kept(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_an_evaluation_asks_about_every_picture_once_also_after_the_server_went_down(configure, server, tmp_path):
    """2 prompts, 2 seeds, the base and a tuned encoder: 8 pictures. One line for the server, none asked twice."""
    tuned, folder = make_run(tmp_path / "a", 1, {"text_encoder": None}), tmp_path / "evaluation"
    config = configure("evaluate", *asking(server, f"tuned.a={tuned}", f"run_dir={folder}"))
    right = "The shape is there.\nCorrect"
    server.reply = lambda requests: (500, {}, b"") if len(requests) > 5 else told(right)
    with pytest.raises(UsageError, match=r"does not answer, asked 2 times \(500 .*: start the server"):
        run(config, folder)
    asked = 5 // 2 * 2  # whole batches are kept
    server.requests.clear()
    server.reply = lambda requests: told("Hard to say." if len(requests) > 8 - asked - 1 else right)
    run(config, folder)
    assert len(server.requests) == 8 - asked - 1 + 3, "the last picture is asked about three times"
    assert [row["value"] for row in kept(folder / "base")] == [1.0] * 4
    assert [row["value"] for row in kept(folder)] == [1.0, 1.0, 1.0, None]
    assert [row["judge/drawbench"] for row in read_rows_of(folder)] == [1.0, 1.0, 1.0, None]
    tables = json.loads((folder / "summary.json").read_text())["judge"]["tables"]
    assert (tables["here"]["overall"], tables["here"]["unanswered"]) == (1.0, 0.25)
    assert tables["base"]["unanswered"] == 0.0
    assert "| overall | 4 | 1.0000 | 25.0% | 1.0000 | 0.0% |" in (folder / "table.md").read_text()
    assert "here, unanswered" in (folder / "report.html").read_text()
    again = configure("evaluate", *asking(server, f"tuned.a={tuned}", f"answers=[{folder},{folder / 'base'}]"))
    server.requests.clear()
    run(again, tmp_path / "again")
    assert not server.requests


def test_pairs_are_compared_with_the_base_and_their_votes_stand_beside_peoples(configure, server, tmp_path):
    """A judge that always says `first` ties every pair; the votes are read as a rater's."""
    tuned, folder = make_run(tmp_path / "a", 1, {"text_encoder": None}), tmp_path / "evaluation"
    server.replies(told("Both.\nfirst"))
    keys = asking(server, f"tuned.a={tuned}", f"run_dir={folder}", "judge.protocol=pairwise")
    run(configure("evaluate", *keys), folder)
    contents = [body["messages"][0]["content"] for _, _, body in server.requests]
    assert [len(content) for content in contents] == [3] * 8
    assert contents[0][:2] == contents[1][1::-1]
    pairs = json.loads((folder / "summary.json").read_text())["judge"]["pairs"]
    assert (pairs["wins"], pairs["ties"], pairs["losses"]) == (0, 4, 0)
    votes = read_ratings(folder / "ratings.jsonl")
    assert {(vote.models, vote.answer) for vote in votes.lines} == {(("here", "base"), "tie")}


def test_score_asks_the_toyboxs_judge(configure, tmp_path, capsys):
    """As the judge itself says of the same pictures."""
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for place, prompt in enumerate(PROMPTS):
        save_png(images[place], tmp_path / "made" / f"{place}.png", {"prompt": prompt})
    keys = (f"images={tmp_path / 'made'}", "rewards=aesthetic", "judge=toybox", "device=cpu")
    score(configure("score", *keys), tmp_path / "scores")
    rows = [json.loads(line) for line in (tmp_path / "scores" / "scores.jsonl").read_text().splitlines()]
    shown = torch.stack([from_pil(Image.open(tmp_path / "made" / f"{place}.png")) for place in range(3)])
    expected = Judge()(shown, PROMPTS)
    for name in ("faithfulness", "letters", "taste"):
        ours = [np.nan if row[f"judge/{name}"] is None else row[f"judge/{name}"] for row in rows]
        np.testing.assert_allclose(ours, expected[name])
    assert "| taste | 3 |" in capsys.readouterr().out
    assert len(kept(tmp_path / "scores")) == 9


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["judge=vlm"], r"understander is needed: choose understander=qwen_vl, blip_vqa or endpoint"),
        (
            ["judge=vlm", "understander=qwen_vl", "understander.path=./gone"],
            r"understander.path: ./gone does not exist",
        ),
        (["judge=vlm", "understander=endpoint", "understander.model=a"], r"understander.url is needed"),
        (["judge=vlm", "judge.protocol=tifas"], r"judge.protocol=tifas must be one of drawbench, tifa, dpg"),
        (["judge=vlm", "understander=qwen_vl", "judge.protocol=pairwise"], r"compares the pictures of two models"),
        (["judge=vlm", "understander=qwen_vl", "suite=dpg"], r"suite.files=dpg_bench.csv does not exist"),
        (
            ["judge=vlm", "understander=qwen_vl", "suite=tifa", "suite.questions=BAD", "suite.files.tifa=BAD"],
            r"BAD must be a list",
        ),
        (["judge=detector", "suite=geneval", "suite.questions=BAD"], r"BAD, line 1: include.0 lacks the field count"),
        (["judge=detector"], r"judge.questions is needed: give GenEval's"),
        (["answers=[here]"], r"answers= is for a judge: choose judge=vlm or detector"),
        (["understander=qwen_vl"], r"understander= is for a judge: choose judge=vlm or detector"),
        (["judge=toybox", "answers=[here]"], r"answers=here holds no answers of a judge: give an answers.jsonl"),
    ],
)
def test_a_judge_that_cannot_work_is_refused_before_anything_loads(configure, tmp_path, overrides, line):
    clause = {"tag": "counting", "prompt": "a photo of a bird", "include": [{"class": "bird"}]}
    (tmp_path / "bad.jsonl").write_text(json.dumps(clause) + "\n")
    overrides = [one.replace("BAD", str(tmp_path / "bad.jsonl")) for one in overrides]
    line = line.replace("BAD", "bad.jsonl")
    with pytest.raises(UsageError, match=line):
        check(configure("evaluate", *SMALL, *overrides), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    texts = ['Does this figure show "a red circle"? Please answer yes or no.', "Yes", "No", "first", "second"]
    save_llava(folder, byte_level_tokenizer(folder, texts * 3, size=320))
    AutoProcessor.from_pretrained(folder).image_processor.save_pretrained(folder)  # as older folders have it
    return folder


def test_a_small_models_probabilities_are_those_of_the_reward(llava):
    """VQAScore as a judge and as a reward is one figure, batched or not; no picture and two pictures are taken too."""
    model, question = AskedModel(str(llava), max_new_tokens=3, device="cpu"), 'Does this figure show "{}"?'
    judge, shown = Likelihood(lambda: model, question, "Yes"), Image.new("RGB", (40, 32), "red")
    prompts = ["a red circle", "no"]
    asked = [Asked(shown, content_of(shown), prompt, *judge.questions(prompt)) for prompt in prompts]
    ours = [answer.value for answer in judge.answers(asked)]
    reward = VQAScore.load(str(llava), question, "Yes")
    theirs = reward(from_pil(shown)[None].repeat(2, 1, 1, 1), prompts)
    assert ours == pytest.approx(theirs.tolist(), rel=1e-3)
    assert ours[0] != pytest.approx(ours[1], rel=1e-3), "one figure for both prompts proves nothing"
    blue = Image.new("RGB", (40, 32), "blue")
    texts = model.answers([(), (shown, blue), (blue, shown)], ["first?"] * 3, 1)
    assert len(texts) == 3


def save_detectors(folder: Path) -> None:
    """A detector of boxes and a segmenter, tiny, with random weights, in the published layout."""
    torch.manual_seed(0)
    names = {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    yolos = YolosConfig(**small, image_size=[32, 32], patch_size=16, num_detection_tokens=4, **names)
    YolosForObjectDetection(yolos).save_pretrained(folder / "yolos")
    sides = {"size": {"shortest_edge": 32, "longest_edge": 64}, "do_pad": False}
    processing = {"image_processor_type": "YolosImageProcessor", **sides}
    (folder / "yolos" / "preprocessor_config.json").write_text(json.dumps(processing))
    stages = [f"stage{number}" for number in range(1, 5)]
    heads = {"depths": [1] * 4, "num_heads": [1] * 4, "window_size": 2, "out_features": stages}
    swin = SwinConfig(image_size=64, patch_size=4, embed_dim=8, **heads)
    widths = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "dim_feedforward": 32}
    widths |= {"encoder_feedforward_dim": 32, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2}
    config = Mask2FormerConfig(backbone_config=swin, num_queries=4, **widths, **names)
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder / "mask2former")
    processing = {"image_processor_type": "Mask2FormerImageProcessor", "size": {"height": 64, "width": 64}}
    (folder / "mask2former" / "preprocessor_config.json").write_text(json.dumps(processing))


class MeanColor:
    """In CLIP's place: embeds a picture as its mean colour, and a text as that of the colour that it names."""

    def pixels(self, images):
        return images

    def embed_pixels(self, images):
        return torch.nn.functional.normalize(images.mean((2, 3)) - 0.3, dim=-1)

    def texts(self, texts):
        named = {"red": (1.0, 0, 0), "blue": (0, 0, 1.0)}
        rows = [next((rgb for word, rgb in named.items() if f" {word}" in text), (0, 1.0, 0)) for text in texts]
        return torch.nn.functional.normalize(torch.tensor(rows) - 0.3, dim=-1)


def test_detectors_of_transformers_see_boxes_and_masks_under_genevals_names(tmp_path):
    save_detectors(tmp_path)
    metadata, picture = tmp_path / "metadata.jsonl", Image.new("RGB", (64, 48), "red")
    rows = [
        {"tag": "colors", "include": [{"class": name, "count": 1, "color": "red"}], "prompt": f"a red {name}"}
        for name in ("computer mouse", "bird", "zebra")
    ]
    metadata.write_text("\n".join(map(json.dumps, rows)))
    for name in ("yolos", "mask2former"):
        keys = {"path": str(tmp_path / name), "clip": str(WEIGHTS / "clip_constraint"), "questions": str(metadata)}
        detector = Detector(**keys, threshold=0.0, device="cpu")
        detector.check(["a red computer mouse", "a red bird"])
        with pytest.raises(UsageError, match=r"knows no class 'zebra', only"):
            detector.check(["a red zebra"])
        with pytest.raises(UsageError, match=r"has no metadata of 'a dog'"):
            detector.check(["a dog"])
        assert "_parts" not in detector.__dict__, "nothing was loaded to find that out"
        detector.__dict__["_scorer"] = MeanColor()
        found = detector.detections(picture)
        objects = [one for several in found.values() for one in several]
        assert objects, "a detector that sees nothing proves nothing"
        assert all(0 <= one.box[0] <= one.box[2] <= 64 for one in objects)
        assert all((one.mask is not None) == (name == "mask2former") for one in objects)
        assert found.get("mouse") == found.get("computer mouse")
        for prompt in ("a red computer mouse", "a red bird"):
            (question,) = detector.questions(prompt)
            (answer,) = detector.answers([Asked(picture, content_of(picture), prompt, question)])
            known = prompt.removeprefix("a red ").removeprefix("computer ") in found
            assert answer.value == float(known)
            assert answer.text.startswith("correct (seen:") == known


def test_an_objects_colour_is_asked_of_its_mask_on_grey():
    """The ground within its box does not count."""
    picture = Image.new("RGB", (8, 8), "blue")
    picture.paste("red", (2, 2, 4, 6))
    mask = np.asarray(picture)[..., 0] > 0
    crop = cut_out(picture, Detection((2.0, 2.0, 6.0, 6.0), 1.0, mask))
    assert crop.size == (4, 4)
    assert crop.getpixel((0, 0)) == (255, 0, 0)
    assert crop.getpixel((3, 0)) == GREY
    assert cut_out(picture, Detection((2.0, 2.0, 6.0, 6.0), 1.0)).getpixel((3, 0)) == (0, 0, 255)


@pytest.mark.parametrize("name", ["vlm", "detector", "toybox"])
def test_every_judges_keys_are_what_its_class_takes(configure, name):
    config = configure("evaluate", f"judge={name}", "suite=parti")
    assert OmegaConf.to_container(config.judge, resolve=True)["_target_"].startswith("textcraftor.evaluation.judging.")
    with pytest.raises(UsageError, match=r"judge.colour=1: .* takes no colour"):
        configure("evaluate", f"judge={name}", "+judge.colour=1")
