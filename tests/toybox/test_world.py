"""The grammar: seeded, held-out pairs and words stay out of training, the tokenizer knows every caption."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import CLIPTextModel, CLIPTokenizer

from tests.conftest import TOYBOX, WEIGHTS
from textcraftor.data.prompt_files import read_prompts
from textcraftor.toybox.captions import caption
from textcraftor.toybox.judge import parse
from textcraftor.toybox.scenes import (
    MIN_COLOR_DISTANCE,
    UNSEEN_PAIRS,
    color_distance,
    is_unseen_word,
    sample_scene,
)


def draw(split, count=300, seed=0):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, split) for _ in range(count)]


def test_the_same_seed_gives_the_same_scenes():
    assert draw("train") == draw("train")
    assert draw("train") != draw("train", seed=1)


def test_training_shows_no_held_out_pair_or_word_and_validation_does():
    pairs = {(shape.color, shape.shape) for scene in draw("train", 2000) for shape in scene.shapes}
    words = [scene.word.text for scene in draw("train", 2000) if scene.word]
    assert not pairs & UNSEEN_PAIRS
    assert not any(map(is_unseen_word, words))
    later = draw("validation")
    assert {(s.color, s.shape) for scene in later for s in scene.shapes} & UNSEEN_PAIRS
    assert any(is_unseen_word(scene.word.text) for scene in later if scene.word)


def test_prompt_files_hold_no_training_prompt_that_is_evaluated():
    files = {split: read_prompts(TOYBOX / "prompts" / f"{split}.txt") for split in ("train", "validation", "test")}
    assert not set(files["train"]) & (set(files["validation"]) | set(files["test"]))
    assert not set(files["validation"]) & set(files["test"])
    stated = [shape for prompt in files["train"] for shape in parse(prompt).shapes]
    assert not {(shape.color, shape.shape) for shape in stated} & UNSEEN_PAIRS


def test_shapes_stand_out_from_their_ground():
    for scene in draw("train", 200):
        for shape in scene.shapes:
            assert color_distance(shape.color, scene.ground) >= MIN_COLOR_DISTANCE


def test_every_caption_is_known_to_the_tokenizer_and_words_are_spelled_letter_by_letter():
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "pipeline" / "tokenizer")
    rng = np.random.default_rng(3)
    for scene in draw("validation", 200):
        for kind in ("short", "descriptive", "alt"):
            text = caption(scene, kind, rng)
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids, text
            assert len(ids) <= tokenizer.model_max_length, text
    assert tokenizer.tokenize('with the word "KKQ"') == ["with", "the", "word", '"', "K", "K", "Q", '"']


def test_alt_captions_leave_facts_out():
    """The base learns mostly from captions that say less than the picture shows, so there is something to teach."""
    rng = np.random.default_rng(4)
    scenes = [scene for scene in draw("train", 600) if scene.word]
    told = [parse(caption(scene, "alt", rng)) for scene in scenes]
    assert 0.08 < np.mean([wanted.word is not None for wanted in told]) < 0.25
    assert np.mean([len(wanted.shapes) < len(scene.shapes) for wanted, scene in zip(told, scenes, strict=True)]) > 0.3


def test_stock_loading_fills_every_weight_of_the_text_encoder():
    _, info = CLIPTextModel.from_pretrained(WEIGHTS / "pipeline" / "text_encoder", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_packed_weights_are_small():
    size = sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file())
    assert size <= 40_000_000


@pytest.mark.parametrize("part", ["pipeline/text_encoder/model", "aesthetic", "hpsv2"])
def test_packed_weights_bear_the_published_key_names(part):
    from safetensors import safe_open

    expected = {
        "pipeline/text_encoder/model": "text_model.embeddings.token_embedding.weight",
        "aesthetic": "layers.7.bias",
        "hpsv2": "visual.transformer.resblocks.0.attn.in_proj_weight",
    }
    with safe_open(WEIGHTS / f"{part}.safetensors", "pt") as file:
        assert expected[part] in file.keys()  # noqa: SIM118 (safe_open is no mapping)
