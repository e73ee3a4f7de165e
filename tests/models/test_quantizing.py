"""Frozen layers in fewer bits: the gradient stays near the exact one, and what cannot be quantized is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from textcraftor.errors import UsageError
from textcraftor.models.quantizing import check_quantize, quantize
from textcraftor.models.tuning import add_learners


def test_without_bitsandbytes_it_is_refused_before_any_model_loads(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_quantize({})
    with pytest.raises(UsageError, match=r"quantize\.denoiser=nf4 needs bitsandbytes: pip install bitsandbytes, or"):
        check_quantize({"denoiser": "nf4"})


def test_a_part_that_is_not_there_or_learns_is_refused(model):
    with pytest.raises(
        UsageError, match=r"quantize\.text_encoder_3=nf4: this model has no such part; it has text_encoder"
    ):
        quantize(model, {"text_encoder_3": "nf4"}, 64, 64)
    model.denoiser.requires_grad_(True)
    with pytest.raises(UsageError, match=r"quantize\.denoiser=nf4: all of it learns"):
        quantize(model, {"denoiser": "nf4"}, 64, 64)


@pytest.mark.parametrize(("kind", "least"), [("nf4", 0.9), ("int8", 0.95)])
def test_a_quantized_denoisers_gradient_stays_near_the_exact_one(model, kind, least):
    """Its cosine is reported; adapters on quantized layers learn as before."""
    pytest.importorskip("bitsandbytes")
    add_learners(model, {"denoiser": {"lora": {"rank": 2, "alpha": 2.0}, "lr": 1e-4, "span": [0, 1]}})
    line = quantize(model, {"denoiser": kind}, 64, 64)
    assert line.startswith(f"denoiser in {kind}, cosine to the exact output ")
    assert all(float(word.rstrip(",")) > least for word in line.split() if word[:2] in ("0.", "1."))
    stored = [one for one in model.denoiser.parameters() if not one.is_floating_point()]
    assert stored
    assert not any(isinstance(one, torch.Tensor) and one.requires_grad for one in stored)
    assert any(type(layer) is nn.Linear for name, layer in model.denoiser.named_modules() if "lora_A" in name)
    assert {part.name: part.choices for part in model.placeable()}["denoiser"] == ()
