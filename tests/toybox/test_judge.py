"""The judge against the truth: rendered scenes, VAE reconstructions, and pictures that are wrong on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from measure_toybox import as_batch, read_back, wrong_accepted

from textcraftor.toybox.captions import descriptive, short
from textcraftor.toybox.judge import Judge, letters, parse, read, taste
from textcraftor.toybox.render import render
from textcraftor.toybox.scenes import Scene, Shape, Word, sample_scene

COUNT = 150


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(99)
    return [sample_scene(rng, "validation") for _ in range(COUNT)]


def test_reads_rendered_scenes(scenes):
    objects, spelled = read_back(scenes, as_batch(scenes))
    assert objects >= 0.98
    assert spelled >= 0.99


def test_reads_reconstructions_of_the_autoencoder(scenes, model):
    with torch.no_grad():
        latents = model.vae.encode(as_batch(scenes) * 2 - 1).latent_dist.mean
        rebuilt = model.decode(latents * model.vae.config.scaling_factor)
    objects, spelled = read_back(scenes, rebuilt)
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


def test_taste_rises_with_each_of_its_parts():
    def of(**change) -> float:
        shape = Shape("red", "square", "large", "center")
        scene = Scene(change.pop("ground", "white"), (replace(shape, **change),))
        return taste(read(render(scene)))["taste"]

    best = of()
    assert best > of(size="small"), "size"
    assert best > of(place="lower left"), "balance"
    assert best > of(ground="navy"), "harmony"
    noisy = render(Scene("white", (Shape("red", "square", "large", "center"),)))
    noisy = np.clip(noisy + np.random.default_rng(0).normal(0, 0.05, noisy.shape), 0, 1)
    assert best > taste(read(noisy))["taste"], "clean"


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
