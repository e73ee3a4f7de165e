"""Every scorer against what its published package said of the same toy-size weights, pictures and prompts.

`golden.json` was written by `python scripts/check_parity.py --golden`, which runs the packages themselves.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import golden, ours, tiny
from parity.runner import joined

from textcraftor.rewards.preprocessing import normalize

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    golden.write_files(folder)
    return {case.name: case for case in golden.cases(folder)}


def tensors() -> list[torch.Tensor]:
    return [torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255 for picture in tiny.pictures()]


@pytest.mark.filterwarnings("ignore:prompt .* has .* tokens")
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_scorer_equals_its_published_package(cases, name):
    """The same files through each one's own preprocessing and tokenizer: pixels, tokens, scores, pixel gradients."""
    scorer, expected = cases[name].load(), GOLDEN[name]
    with torch.no_grad():
        pixels = [ours.preprocessed(scorer, image) for image in tensors()]
        pairs = zip(tensors(), tiny.PROMPTS, strict=True)
        scores = torch.cat([scorer(image, [prompt]) for image, prompt in pairs]).numpy()
    np.testing.assert_allclose(tiny.sample(joined(pixels).numpy()), expected["pixels"], atol=1e-4)
    assert np.abs(scores - expected["scores"]).max() <= 1e-3 * np.std(expected["scores"])
    for key, ids in ours.tokens(scorer, tiny.TOKEN_PROMPTS).items():
        assert ids.tolist() == expected[f"tokens_{key}"]
    each = list(zip(tensors(), pixels, tiny.PROMPTS, strict=True))
    gradients = joined([ours.gradient(scorer, *one) for one in each[:2]])
    sampled = tiny.sample(gradients.numpy(), len(expected["gradients"]))
    np.testing.assert_allclose(sampled, expected["gradients"], atol=1e-3 * np.abs(expected["gradients"]).max())


@pytest.mark.parametrize("fault", ["average pooling", "mean"])
def test_the_comparison_notices_a_wrong_preprocessing(cases, monkeypatch, fault):
    """What others get wrong moves a score by far more than the comparison allows."""
    scorer, expected = cases["ClipScore"].load(), GOLDEN["ClipScore"]
    if fault == "mean":
        name = "textcraftor.rewards.preprocessing.normalize"
        monkeypatch.setattr(name, lambda images, mean, std: normalize(images, [0.5] * 3, std))
    else:
        pool = torch.nn.functional.adaptive_avg_pool2d
        resize = lambda images, height, width, **_: pool(images, (height, width))  # noqa: E731
        monkeypatch.setattr("textcraftor.rewards.preprocessing.resize", resize)
    scores = np.array([float(scorer(image, ["a red circle"])) for image in tensors()])
    exact = np.array(expected["scores"])
    assert np.abs(scores[0] - exact[0]) > 1e-2 * exact.std()


def by_rows_and_columns(scorer, monkeypatch):
    """Qwen2-VL's own places of tokens, which HPSv3's published code does not use."""
    forward = scorer.reader.model.forward
    monkeypatch.setattr(scorer.reader.model, "forward", lambda position_ids, **given: forward(**given))


FURTHER_FAULTS = {
    "SigLIP": lambda scorer, monkeypatch: monkeypatch.setattr(scorer, "siglip", False),  # crops
    "MPS": lambda scorer, monkeypatch: monkeypatch.setattr(scorer, "threshold", 0.01),
    "HPSv3": by_rows_and_columns,
}


@pytest.mark.filterwarnings("ignore:prompt .* has .* tokens")
@pytest.mark.parametrize("name", sorted(FURTHER_FAULTS))
def test_the_comparison_notices_what_one_would_have_guessed(cases, monkeypatch, name):
    scorer, exact = cases[name].load(), np.array(GOLDEN[name]["scores"])
    FURTHER_FAULTS[name](scorer, monkeypatch)
    with torch.no_grad():
        scores = [float(scorer(image, [prompt])) for image, prompt in zip(tensors(), tiny.PROMPTS, strict=True)]
    assert np.abs(np.array(scores) - exact).max() > 1e-2 * exact.std()
