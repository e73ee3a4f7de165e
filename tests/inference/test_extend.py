"""Prompts that are extended: by a language model, token by token the most likely; by the grammar, no fact changed."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from tests.conftest import WEIGHTS
from textcraftor.cli import call
from textcraftor.data.prompts import read_prompts
from textcraftor.errors import UsageError
from textcraftor.evaluation.suite import read_rows_of
from textcraftor.inference.extend import LanguageModel, check_extender
from textcraftor.toybox.expander import Expander
from textcraftor.toybox.judge import parse


@pytest.fixture
def language_model(tmp_path) -> str:
    """GPT-2, tiny, with random weights and the toybox's words."""
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "pipeline" / "tokenizer")
    torch.manual_seed(1)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3, **ends
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_language_model_goes_on_from_the_prompt(language_model):
    """Against a loop of our own: the most likely token each time, used ones divided by the penalty's 1.2."""
    extender, prompt = LanguageModel(language_model, max_new_tokens=5), "a red circle"
    ids = extender.tokenizer(prompt, return_tensors="pt").input_ids
    given = ids.shape[1]
    for _ in range(5):
        with torch.no_grad():
            logits = extender.model(ids).logits[0, -1]
        used = ids[0].unique()
        logits[used] = torch.where(logits[used] > 0, logits[used] / 1.2, logits[used] * 1.2)
        ids = torch.cat([ids, logits.argmax()[None, None]], 1)
        if ids[0, -1] == extender.tokenizer.eos_token_id:
            break
    added = extender.tokenizer.decode(ids[0, given:], skip_special_tokens=True)
    assert added.strip()
    assert extender([prompt]) == [f"{prompt}{added.rstrip()}"]


def test_the_grammar_adds_facts_and_changes_none():
    prompts = read_prompts(WEIGHTS.parent / "prompts" / "test.txt")
    extended = Expander()(prompts)
    assert extended == Expander()(prompts)
    for before, after in zip(map(parse, prompts), map(parse, extended), strict=True):
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
    """The pictures are those of the extended prompts, the rows and scores those of the prompts as they are."""
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n")
    chosen = ("sampling.steps=2", "seeds=[0]", f"prompts.path={file}", "device=cpu")
    evaluation = call("evaluate", ["extend=true", "rewards=aesthetic", f"run_dir={tmp_path / 'e'}", *chosen])
    pictures = call("generate", ["extend=true", f"run_dir={tmp_path / 'g'}", *chosen])
    (row,) = read_rows_of(evaluation)
    assert row["prompt"] == "a red circle"
    with Image.open(evaluation / row["picture"]) as ours, Image.open(pictures / "0000_0.png") as theirs:
        assert ours.tobytes() == theirs.tobytes()
        assert theirs.text["prompt"] == "a red circle"
        assert theirs.text["extended"] == Expander()(["a red circle"])[0]
    assert "difference" in json.loads((evaluation / "summary.json").read_text())


def test_a_model_without_an_extender_says_so(configure):
    with pytest.raises(UsageError, match=r"extend=true needs model.extender"):
        check_extender(configure("generate", "extend=true", "model.extender=null"))
