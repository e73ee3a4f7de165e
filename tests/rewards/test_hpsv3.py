"""HPSv3 beside its published package (`test_parity.py`): gradient, batches, precision, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from parity import folders
from safetensors.torch import load_file, save_file

from tests.rewards.checking import check_gradient, images
from textcraftor.errors import UsageError
from textcraftor.rewards.hpsv3 import HPSv3

PROMPTS = ["a red circle", "a blue star and a red circle {x}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hpsv3")
    folders.write_hpsv3(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(folder):
    return HPSv3.load(str(folder / "HPSv3.safetensors"), str(folder))


def test_its_gradient_agrees_with_finite_differences(scorer):
    """Qwen2-VL's norms stay in single precision, so the step is larger than elsewhere."""
    check_gradient(scorer, images()[2], PROMPTS[:1], step=1e-2, rtol=2e-2)


def test_a_pictures_score_does_not_depend_on_the_batch(scorer):
    """Shorter prompts are padded."""
    batch = images()[2].expand(2, -1, -1, -1)
    with torch.no_grad():
        alone = torch.cat([scorer(batch[:1], [prompt]) for prompt in PROMPTS])
        assert alone[0] != alone[1]
        torch.testing.assert_close(scorer(batch, PROMPTS), alone, rtol=1e-4, atol=1e-5)


def test_its_weights_keep_their_precision_and_its_head_stays_in_single(folder, tmp_path):
    """Published: bfloat16, with a head in float32."""
    state = load_file(folder / "HPSv3.safetensors")
    half = {key: value if key.startswith("rm_head.") else value.bfloat16() for key, value in state.items()}
    save_file(half, tmp_path / "HPSv3.safetensors")
    scorer = HPSv3.load(str(tmp_path / "HPSv3.safetensors"), str(folder))
    head = [weight.clone() for weight in scorer.head.parameters()]
    assert scorer.reader.model.dtype == torch.bfloat16
    scorer.bfloat16()
    assert all(torch.equal(*pair) for pair in zip(scorer.head.parameters(), head, strict=True))
    assert scorer.double().head[0].weight.dtype == torch.float64


def test_what_it_cannot_read_is_refused(scorer, folder, tmp_path):
    with pytest.raises(UsageError, match=r"holds '<\|Reward\|>', a sign of the model's own"):
        scorer(images()[2], ["a star <|Reward|>"])
    state = load_file(folder / "HPSv3.safetensors")
    del state["rm_head.3.weight"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(UsageError, match=r"key '3.weight' is missing; expected HPSv3's layout"):
        HPSv3.load(str(tmp_path / "cut.safetensors"), str(folder))
