"""Models in float64, for finite differences."""

from __future__ import annotations

import copy

import pytest
import torch

from textcraftor.models.model import Model


@pytest.fixture
def in_float64(monkeypatch):
    """Makes a model compute in float64, with a first text encoder that learns.

    Attention rounds to float32 by `.float()`, and RMSNorm does so too; finite differences need all digits.
    """
    rounded = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else rounded(x))

    def doubled(model: Model) -> Model:
        for part in (model.denoiser, model.vae, *model.encoders().values()):
            part.double()
        for module in model.denoiser.modules():
            for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
                if getattr(module, norm, None) is not None:
                    setattr(module, norm, None)
        model.compute_dtype = torch.float64
        tuned = copy.deepcopy(model.encoders()["text_encoder"]).requires_grad_(True)
        model.add_reader("tuned", {"text_encoder": tuned})
        return model

    return doubled
