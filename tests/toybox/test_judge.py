"""The judge against the truth: rendered scenes, VAE reconstructions, and pictures that are wrong on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from textcraftor.toybox.captions import descriptive, short
from textcraftor.toybox.judge import Judge, check, letters, parse, read, taste
from textcraftor.toybox.render import render
from textcraftor.toybox.scenes import LETTERS, SHAPES, Scene, Shape, Word, sample_scene

COUNT = 150


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(99)
    return [sample_scene(rng, "validation") for _ in range(COUNT)]


def all_held(scene: Scene, picture: np.ndarray) -> bool:
    """Whether the judge finds everything that the scene's full caption says."""
    wanted, reading = parse(descriptive(scene)), read(picture)
    return all(held for _, held in check(wanted, reading)) and (not wanted.word or letters(wanted, reading) == 1)


def objects_and_letters(scenes, pictures) -> tuple[float, float]:
    objects, spelled = [], []
    for scene, picture in zip(scenes, pictures, strict=True):
        wanted, reading = parse(descriptive(scene)), read(picture)
        facts = [held for name, held in check(wanted, reading) if name in ("color", "shape", "size", "place")]
        objects += [all(facts[i : i + 4]) for i in range(0, len(facts), 4)]
        spelled.append(letters(wanted, reading))
    return float(np.mean(objects)), float(np.nanmean(spelled))


def test_reads_rendered_scenes(scenes):
    objects, spelled = objects_and_letters(scenes, [render(scene) for scene in scenes])
    assert objects >= 0.98
    assert spelled >= 0.99


def test_reads_reconstructions_of_the_autoencoder(scenes, model):
    images = torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2)
    with torch.no_grad():
        rebuilt = model.decode(model.vae.encode(images * 2 - 1).latent_dist.mean * model.vae.config.scaling_factor)
    objects, spelled = objects_and_letters(scenes, rebuilt.permute(0, 2, 3, 1).numpy())
    assert objects >= 0.95
    assert spelled >= 0.95


def with_other_shape(scene: Scene) -> Scene:
    first = scene.shapes[0]
    other = SHAPES[(SHAPES.index(first.shape) + 1) % len(SHAPES)]
    return replace(scene, shapes=(replace(first, shape=other), *scene.shapes[1:]))


def with_swapped_colors(scene: Scene) -> Scene:
    first, second = scene.shapes
    return replace(scene, shapes=(replace(first, color=second.color), replace(second, color=first.color)))


def with_other_word(scene: Scene) -> Scene:
    text = scene.word.text
    return replace(scene, word=replace(scene.word, text=LETTERS[(LETTERS.index(text[0]) + 1) % 26] + text[1:]))


@pytest.mark.parametrize(
    ("spoil", "applies"),
    [
        (with_other_shape, lambda scene: True),
        (with_swapped_colors, lambda scene: len(scene.shapes) == 2),
        (with_other_word, lambda scene: scene.word is not None),
    ],
)
def test_refuses_wrong_pictures(scenes, spoil, applies):
    cases = [scene for scene in scenes if applies(scene)]
    wrong = [all_held(scene, render(spoil(scene))) for scene in cases]
    assert len(cases) >= 50
    assert np.mean(wrong) <= 0.02


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
