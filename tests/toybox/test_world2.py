"""The second world: taste is what a person would call beautiful, and the judge reads facts and style back from damaged
pictures and is not taken in by pictures that are no scenes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from measure_world2 import DAMAGES, figures, judged
from train_toybox import CONTEXT, new_tokenizer

from textcraftor.toybox.world2.captions import (
    FINISH_WORDS,
    FOCUS_WORDS,
    GROUND_WORDS,
    LIGHT_WORDS,
    TINT_WORDS,
    caption,
    descriptive,
    short,
)
from textcraftor.toybox.world2.judge import Judge, check, letters, parse, read, taste
from textcraftor.toybox.world2.render import paint_shape, render, shape_layers, style_parts, taste_of_scene, tinted
from textcraftor.toybox.world2.scenes import UNSEEN_PAIRS, Scene, Shape, Word, is_unseen_word, sample_scene
from textcraftor.toybox.world2.styles import PARTS, Style, taste_of

BEST_STYLE = Style(ground="gradient", shaded=True, shadow=True)
BEST = Scene("navy", (Shape("yellow", "ring", "large", "center"),), style=BEST_STYLE)
WORST_STYLE = Style("dark", 1.0, 1.7, "stained", 5)
WORST = Scene("navy", (Shape("yellow", "ring", "large", "upper left", vividness=0.0),), style=WORST_STYLE)


def draw(count: int, split="validation", seed=99) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, split) for _ in range(count)]


def judge(pictures: list[np.ndarray], prompts: list[str]) -> dict[str, np.ndarray]:
    return Judge(parts=True)(torch.tensor(np.stack(pictures)).float().permute(0, 3, 1, 2), prompts)


@pytest.mark.parametrize("name", DAMAGES)
def test_facts_letters_and_taste_survive_damage(name):
    rows = figures(judged(draw(60), DAMAGES[name]))
    assert rows["facts"] >= 0.97
    assert rows["letters"] >= 0.97
    assert rows["taste"] >= 0.95
    assert abs(rows["taste bias"]) <= 0.03


def test_the_highest_taste_is_a_picture_that_a_person_would_call_the_best():
    """Steepest ascent over everything that a scene may be ends in good light, in focus, shaded, vivid, balanced."""
    styles = [
        Style(light, 0.0 if light == "good" else 0.8, softness, ground, 0, shaded, shadow)
        for light, softness, ground, shaded, shadow in itertools.product(
            ("good", "dark", "faded"), (0.0, 1.4), ("plain", "gradient", "stained"), (False, True), (False, True)
        )
    ]
    places = ("left", "center", "upper left")
    scenes = [
        replace(WORST, shapes=(replace(WORST.shapes[0], place=place, vividness=vividness),), style=style)
        for style, place, vividness in itertools.product(styles, places, (0.0, 0.5, 1.0))
    ]
    best = max(scenes, key=taste_of_scene)
    assert replace(best.style, stains=0) == BEST_STYLE
    assert (best.shapes[0].place, best.shapes[0].vividness) == ("center", 1.0)
    assert taste_of_scene(best) == pytest.approx(1.0)


def test_no_single_factor_carries_taste():
    worst, best = style_parts(WORST), style_parts(BEST)
    for part in PARTS:
        assert taste_of(worst | {part: best[part]}) < 0.45, part
        assert taste_of(best | {part: worst[part]}) > 0.7, part


def test_shape_colour_and_word_never_enter_taste():
    for change in ({"color": "red"}, {"shape": "star"}, {"size": "small"}):
        assert taste_of_scene(replace(BEST, shapes=(replace(BEST.shapes[0], **change),))) == taste_of_scene(BEST)
    assert taste_of_scene(replace(BEST, word=Word("KQ", "top"))) == taste_of_scene(BEST)


def test_style_is_mixed_and_a_fifth_of_scenes_is_beautiful():
    tastes = np.array([taste_of_scene(scene) for scene in draw(2000, "train")])
    assert 0.15 < np.mean(tastes > 0.8) < 0.25
    assert np.mean(tastes) < 0.62


def test_the_same_seed_gives_the_same_pictures_and_training_shows_nothing_unseen():
    scenes = draw(400, "train")
    assert scenes == draw(400, "train")
    assert np.array_equal(render(scenes[0]), render(draw(1, "train")[0]))
    assert not {(shape.color, shape.shape) for scene in scenes for shape in scene.shapes} & UNSEEN_PAIRS
    assert not any(is_unseen_word(scene.word.text) for scene in scenes if scene.word)


def test_captions_state_facts_fit_the_tokenizer_and_only_descriptive_ones_name_style():
    tokenizer = new_tokenizer()
    rng = np.random.default_rng(3)
    named = {*LIGHT_WORDS.values(), *FOCUS_WORDS, *GROUND_WORDS, *FINISH_WORDS, *TINT_WORDS, "shadow"}
    seen = set[str]()
    for scene in draw(200):
        wanted = parse(descriptive(scene))
        assert [(s.color, s.shape, s.size, s.place) for s in wanted.shapes] == [
            (s.color, s.shape, s.size, s.place) for s in scene.shapes
        ]
        for kind in ("short", "descriptive", "alt"):
            text = caption(scene, kind, rng)
            words = set(text.replace(",", "").split())
            assert kind == "descriptive" or not words & named
            seen |= words & named
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert len(ids) < CONTEXT
        styled = parse(descriptive(scene, ("light", "focus", "ground", "finish", "shadow", "tint")))
        assert styled == wanted
    assert seen == named


def test_words_and_shapes_that_nobody_asked_for_cost_faithfulness():
    two = replace(BEST, shapes=(*BEST.shapes, Shape("red", "circle", "small", "left")))
    for scene in (replace(BEST, word=Word("KQ", "top")), two):
        prompt = short(BEST)
        assert all(held for _, held in check(parse(prompt), read(render(BEST))))
        assert not all(held for _, held in check(parse(prompt), read(render(scene))))
    picture = render(replace(BEST, word=Word("KKQ", "top")))
    for word, share in (("KKQ", 1.0), ("KKA", 2 / 3), ("KK", 2 / 3), ("AAA", 0.0)):
        assert letters(parse(f'a yellow ring with the word "{word}"'), read(picture)) == pytest.approx(share)


def test_pictures_of_other_prompts_are_not_faithful():
    scenes = draw(40)
    read_as = judge([render(scene) for scene in scenes], [descriptive(scene) for scene in [*scenes[1:], scenes[0]]])
    assert np.mean(read_as["faithfulness"]) < 0.35
    assert np.nanmean(read_as["letters"]) < 0.2


def patterns() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    waves = 0.5 + 0.5 * np.sin(columns * 2 * np.pi / 4)
    return {
        "dark": np.full((64, 64, 3), 0.05),
        "white": np.ones((64, 64, 3)),
        "sky": np.tile(np.array((162, 210, 252)) / 255, (64, 64, 1)),
        "noise": rng.random((64, 64, 3)),
        "checks": np.tile(((rows // 2 + columns // 2) % 2)[..., None].astype(float), (1, 1, 3)),
        "stripes": np.tile(waves[..., None], (1, 1, 3)),
        "blobs": np.repeat(np.repeat(rng.random((8, 8, 3)), 8, 0), 8, 1),
    }


@pytest.mark.parametrize("name", patterns())
def test_patterns_have_neither_taste_nor_facts(name):
    read_as = judge([patterns()[name]], ["a red circle and a blue star"])
    assert read_as["taste"] < 0.1
    assert read_as["faithfulness"] == 0


def scribbled(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With a thick random line in one colour."""
    picture, color = picture.copy(), rng.random(3)
    points = np.clip(np.cumsum(rng.normal(0, 3, (30, 2)), 0) + rng.uniform(8, 56, 2), 1, 62).astype(int)
    for x, y in points:
        picture[y - 1 : y + 2, x - 1 : x + 2] = color
    return picture


def test_scribbles_lower_taste():
    rng = np.random.default_rng(0)
    scenes = draw(12)
    clean = judge([render(scene) for scene in scenes], [short(scene) for scene in scenes])["taste"]
    spoilt = judge([scribbled(render(scene), rng) for scene in scenes], [short(scene) for scene in scenes])["taste"]
    assert np.all(spoilt <= clean + 0.02)
    assert np.mean(spoilt) < 0.75 * np.mean(clean)


def test_overlapping_shapes_do_not_raise_taste():
    picture = render(BEST)
    for color, shape, x, y in (("red", "star", 38, 26), ("pink", "circle", 26, 38), ("teal", "cross", 38, 38)):
        paint_shape(picture, shape_layers(shape, 11), x, y, tinted(color, 1.0), 1.0, 1.0)
    reading = read(picture)
    assert taste(reading)["taste"] < 0.8 * taste_of_scene(BEST)
    assert not all(held for _, held in check(parse("a yellow ring and a red star"), reading))


def test_climbing_by_scribbles_and_patches_gains_no_taste():
    """Whoever may paint any spot of a picture anew, and keeps what the judge likes better, hardly gets anywhere."""
    rng = np.random.default_rng(1)
    picture = render(replace(BEST, style=replace(BEST_STYLE, ground="plain", shadow=False)))
    began = best = taste(read(picture))["taste"]
    for _ in range(80):
        trial = scribbled(picture, rng) if rng.random() < 0.5 else picture.copy()
        x, y, side = *rng.integers(0, 56, 2).tolist(), int(rng.integers(2, 16))
        trial[y : y + side, x : x + side] += rng.normal(0, 0.1, 3)
        gained = taste(read(np.clip(trial, 0, 1)))["taste"]
        if gained > best:
            picture, best = np.clip(trial, 0, 1), gained
    assert best < began + 0.05
