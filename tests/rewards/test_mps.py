"""MPS beside its authors' own script (`test_parity.py`): gradient, batches, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from parity import environments, folders, tiny

from tests.rewards.checking import check_gradient, images
from textcraftor.errors import UsageError
from textcraftor.rewards.mps import MPS

PROMPTS = ["a red circle", "a blue star and a red circle"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mps")
    folders.write_mps(folder / "mps.safetensors")
    tiny.write_bpe(folder / "bpe.txt.gz")
    environments.clip_tokenizer(folder / "bpe.txt.gz", folder / "tokenizer", tiny.CONTEXT)
    return {
        "checkpoint": str(folder / "mps.safetensors"),
        "tokenizer": str(folder / "tokenizer"),
        "architecture": str(folder / "mps.json"),
    }


@pytest.fixture(scope="module")
def scorer(files):
    return MPS.load(**files, condition="red, blue star.", threshold=0.3)


def test_its_gradient_agrees_with_finite_differences(scorer):
    check_gradient(scorer, images()[1], PROMPTS[:1])


def test_a_pictures_score_does_not_depend_on_the_batch(scorer):
    """The published code divides likenesses by the largest of the whole batch; here each prompt has its own."""
    batch = images()[0].expand(2, -1, -1, -1)
    alone = torch.cat([scorer(batch[:1], [prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(scorer(batch, PROMPTS), alone, rtol=1e-4, atol=1e-5)


def test_the_condition_and_the_threshold_choose_the_words_that_are_looked_at(scorer):
    """A token is kept if its likeness to any token of the condition is above a share of the likest one's."""
    tokens, wanted = scorer.texts(PROMPTS)[:, :-1], scorer.texts([scorer.condition])[0, :-1]
    for prompt, kept in zip(tokens, scorer.kept(tokens), strict=True):
        likeness = [max(float(token @ other) for other in wanted) for token in prompt]  # none is near the threshold
        assert kept.tolist() == [one / max(likeness) > scorer.threshold for one in likeness]
    assert not scorer.kept(tokens).all()


def test_what_it_lacks_is_refused(files):
    with pytest.raises(UsageError, match=r"checkpoint= is needed.*\.safetensors"):
        MPS.load(**files | {"checkpoint": None}, condition="red", threshold=0.3)
    with pytest.raises(UsageError, match=r"threshold=1.0 must lie in \[0, 1\)"):
        MPS.load(**files, condition="red", threshold=1.0)
    with pytest.raises(UsageError, match="condition=' ' is empty"):
        MPS.load(**files, condition=" ", threshold=0.3)
