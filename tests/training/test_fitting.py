"""The loop that small models are trained by."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from textcraftor.training.fitting import FitSettings, fit


def test_losses_in_bfloat16_train_float32_weights_to_nearly_the_same_end(tmp_path):
    """A linear regression whose answer is known, by both precisions."""
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    wanted = inputs @ torch.arange(8.0)[:, None]
    ends = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model, computed = nn.Linear(8, 1), set()

        def loss_of(step, model=model, computed=computed):
            output = model(inputs)
            computed.add(output.dtype)
            return {"mse": nn.functional.mse_loss(output, wanted)}

        settings = FitSettings(600, 0.2, weight_decay=0.0, max_grad_norm=1e9, dtype=dtype)
        ends[dtype] = fit(str(dtype), model, loss_of, settings, tmp_path).weight.detach()[0]
        assert computed == {dtype}
    assert ends[torch.float32].tolist() == pytest.approx(range(8), abs=0.02)
    assert ends[torch.bfloat16].dtype == torch.float32
    assert ends[torch.bfloat16].tolist() == pytest.approx(range(8), abs=0.1)
