"""The judge against the truth: rendered scenes, VAE reconstructions, and pictures that are wrong on purpose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from measure_toybox import as_batch, read_back, rebuild, wrong_accepted
from train_toybox import WEIGHTS

from textcraftor.toybox.world2.captions import descriptive, short
from textcraftor.toybox.world2.judge import Judge, letters
from textcraftor.toybox.world2.reading import read
from textcraftor.toybox.world2.render import render
from textcraftor.toybox.world2.scenes import Scene, Shape, Word, sample_scene
from textcraftor.toybox.world2.wanted import parse

COUNT = 150


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(99)
    return [sample_scene(rng, "validation") for _ in range(COUNT)]


def test_reads_rendered_scenes(scenes):
    objects, spelled = read_back(scenes, as_batch(scenes))
    assert objects >= 0.98
    assert spelled >= 0.99


def test_reads_reconstructions_of_the_autoencoder(scenes):
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "pipeline" / "vae", torch_dtype=torch.float32)
    objects, spelled = read_back(scenes, rebuild(vae, as_batch(scenes)))
    assert objects >= 0.95
    assert spelled >= 0.95


def test_refuses_wrong_pictures(scenes):
    found = wrong_accepted(scenes, np.random.default_rng(0))
    assert found.keys() == {"shape", "colors", "word"}
    for kind, accepted in found.items():
        assert len(accepted) >= 50, kind
        assert np.mean(accepted) <= 0.02, kind


def test_counts_letters_in_place_and_letters_too_many():
    scene = Scene("white", (Shape("red", "circle", "large", "center"),), Word("KKQ", "top"))
    picture = render(scene)
    for word, share in (("KKQ", 1.0), ("KKA", 2 / 3), ("KK", 2 / 3), ("QKK", 1 / 3), ("AAA", 0.0)):
        assert letters(parse(f'a red circle with the word "{word}"'), read(picture)) == pytest.approx(share)
    assert letters(parse('a red circle with the word "KKQ" at the bottom'), read(picture)) == 0


def test_a_picture_of_noise_has_no_taste_and_no_fact():
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    figures = Judge()(noise, ["a red circle and a blue star"])
    assert figures["taste"] == 0
    assert figures["faithfulness"] == 0


def test_a_prompt_states_what_its_caption_says(scenes):
    for scene in scenes[:40]:
        wanted = parse(descriptive(scene))
        assert [(s.color, s.shape, s.size, s.place) for s in wanted.shapes] == [
            (s.color, s.shape, s.size, s.place) for s in scene.shapes
        ]
        assert wanted.ground == scene.ground
        assert (wanted.word, wanted.row) == ((scene.word.text, scene.word.row) if scene.word else (None, None))
        assert all(s.size is None and s.place is None for s in parse(short(scene)).shapes)
