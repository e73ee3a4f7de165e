"""Prompts that say more: what a language model loses is caught; the grammar changes no fact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from tests.conftest import WEIGHTS
from textcraftor.captioning.upsample import InstructedModel, check_upsampler, faults
from textcraftor.cli import call
from textcraftor.data.prompt_files import read_prompts
from textcraftor.errors import UsageError
from textcraftor.evaluation.suite import read_rows_of
from textcraftor.toybox.expander import Expander
from textcraftor.toybox.judge import parse


@pytest.fixture
def language_model(tmp_path) -> str:
    """GPT-2, tiny, with random weights, the toybox's words and a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "pipeline" / "tokenizer")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    torch.manual_seed(1)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=512, n_embd=32, n_layer=2, n_head=2, **ends)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('three small cats are running past the shop whose sign reads "OPEN" at night in rain and neon light', []),
        ("three cats run past a shop", ['"OPEN" is lost', "sign is lost", "reads is lost", "6 words"]),
        (
            '3 cats by a sign that reads "OPEN", and many more words to make this long enough for it',
            ["three is lost", "run is lost", "shop is lost"],
        ),
        ('three cats run by a shop with a sign that reads "Open" and more words to make it long', ['"OPEN" is lost']),
    ],
)
def test_what_a_rewriting_loses_is_named(text, found):
    assert faults('three cats run by a shop, its sign reads "OPEN"', text, 15, 80) == found


def test_a_rewriting_stands_only_if_it_keeps_the_facts(language_model, monkeypatch):
    """A random model never keeps them, so the prompt stays; what it is asked, and how often, is looked at."""
    upsampler, asked = InstructedModel(language_model, tries=3, device="cpu"), []
    write = upsampler._write
    monkeypatch.setattr(
        upsampler, "_write", lambda prompts, number: asked.append((list(prompts), number)) or write(prompts, number)
    )
    assert upsampler(["a red circle", "a red circle", "a star"]) == ["a red circle", "a red circle", "a star"]
    assert asked == [(["a red circle", "a star"], number) for number in range(3)]
    assert write(["a red circle"], 0) == write(["a red circle"], 0)
    assert write(["a red circle"], 1) == write(["a red circle"], 1), "draws, the same ones again"

    told = "a large red circle in the center on a white ground, in a picture with much more to see"
    monkeypatch.setattr(
        upsampler, "_write", lambda prompts, number: [told if "circle" in p and number else "" for p in prompts]
    )
    assert upsampler(["a red circle", "a star"]) == [told, "a star"]


def test_a_model_that_answers_no_messages_is_refused(language_model):
    (Path(language_model) / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="has no chat template: give an instruction-tuned model"):
        InstructedModel(language_model)
    with pytest.raises(UsageError, match="least=0"):
        InstructedModel(language_model, least=0)


def test_the_command_writes_what_prompts_path_reads(tmp_path):
    (tmp_path / "p.txt").write_text("a red circle\nsomething else\n")
    folder = call("upsample", [f"prompts.path={tmp_path / 'p.txt'}", f"run_dir={tmp_path / 'u'}"])
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    assert [row["original"] for row in rows] == ["a red circle", "something else"]
    assert read_prompts(folder / "prompts.jsonl") == Expander()(["a red circle", "something else"])
    with pytest.raises(UsageError, match="already holds prompts"):
        call("upsample", [f"prompts.path={tmp_path / 'p.txt'}", f"run_dir={tmp_path / 'u'}"])


def test_the_grammar_adds_facts_and_changes_none():
    prompts = read_prompts(WEIGHTS.parent / "prompts" / "test.txt")
    upsampled = Expander()(prompts)
    assert upsampled == Expander()(prompts)
    for before, after in zip(map(parse, prompts), map(parse, upsampled), strict=True):
        assert len(before.shapes) == len(after.shapes)
        for one, other in zip(before.shapes, after.shapes, strict=True):
            assert (one.color, one.shape) == (other.color, other.shape)
            assert one.size in (None, other.size)
            assert one.place in (None, other.place)
            assert other.size
            assert other.place
        assert before.ground in (None, after.ground)
        assert after.ground
        assert before.word == after.word
        assert before.row in (None, after.row)
    assert Expander()(["something else"]) == ["something else"]


def test_scorers_read_the_prompt_itself(tmp_path):
    """The pictures are those of the upsampled prompts, the rows and scores those of the prompts as they are."""
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n")
    chosen = ("sampling.steps=2", "seeds=[0]", f"prompts.path={file}", "device=cpu")
    evaluation = call("evaluate", ["upsample=true", "rewards=aesthetic", f"run_dir={tmp_path / 'e'}", *chosen])
    pictures = call("generate", ["upsample=true", f"run_dir={tmp_path / 'g'}", *chosen])
    (row,) = read_rows_of(evaluation)
    assert row["prompt"] == "a red circle"
    with Image.open(evaluation / row["picture"]) as ours, Image.open(pictures / "0000_0.png") as theirs:
        assert ours.tobytes() == theirs.tobytes()
        assert theirs.text["prompt"] == "a red circle"
        assert theirs.text["upsampled"] == Expander()(["a red circle"])[0]
    assert "difference" in json.loads((evaluation / "summary.json").read_text())


def test_a_model_without_an_upsampler_says_so(configure):
    with pytest.raises(UsageError, match=r"upsample=true needs model.upsampler"):
        check_upsampler(configure("generate", "upsample=true", "model.upsampler=null"))
