"""Loading and encoding: the stock tokenizer and encoder, clear refusals, no needless work."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import PROMPTS, add_text_encoder, load
from textcraftor.errors import UsageError
from textcraftor.models.tuned import load_text_encoders


def test_seeds_give_the_noise_of_their_own_generator(model):
    together = model.noise([5, 6], 64, 64)
    expected = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(6))
    assert torch.equal(together[1:], expected)


def test_a_text_is_encoded_once_per_run_by_the_original_and_once_per_step_by_a_tuned_encoder(model):
    """What learns is not remembered; what does not gives the same embeddings as before."""
    before = model.encode(PROMPTS, [""] * 3)
    add_text_encoder(model)
    model.remember()
    rows = {"original": [], "tuned": []}
    for name in rows:
        encoder = model.encoders(name)["text_encoder"]
        encoder.register_forward_pre_hook(lambda _, arguments, name=name: rows[name].append(len(arguments[0])))
    for _ in range(2):
        for name in rows:
            model.encode(PROMPTS, [""] * 3, name)
    assert rows["original"] == [1] * 4
    assert rows["tuned"] == [4, 4]
    for ours, theirs in zip(model.encode(PROMPTS, [""] * 3).branches, before.branches, strict=True):
        torch.testing.assert_close(ours.mixed, theirs.mixed, rtol=0, atol=1e-6)


def test_one_negative_prompt_per_prompt(model):
    with pytest.raises(UsageError, match="1 negative prompts for 3 prompts"):
        model.encode(PROMPTS, [""])


def test_a_prompt_that_is_too_long_is_named_in_a_warning(model):
    with pytest.warns(UserWarning, match="its end, past token 38, is cut off"):
        model.check_prompts([" and ".join(["a red circle"] * 12)])


def test_sizes_that_the_autoencoder_cannot_make_are_refused(model):
    with pytest.raises(UsageError, match="size 64x66"):
        model.noise([0], 64, 66)


def test_folders_that_hold_no_pipeline_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no model_index.json"):
        load(tmp_path)


def test_an_encoder_of_another_base_model_is_refused(model, tmp_path):
    (tmp_path / "text_encoder").mkdir()
    encoder = model.encoders("original")["text_encoder"]
    state = {key: value[..., :-1].contiguous() for key, value in encoder.state_dict().items()}
    save_file(state, tmp_path / "text_encoder" / "model.safetensors")
    with pytest.raises(UsageError, match=r"has the shape .* but the model's own .* another base model"):
        load_text_encoders(model, tmp_path, "other")
