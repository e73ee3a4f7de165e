"""Compiling is trusted only where it changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from textcraftor.errors import UsageError
from textcraftor.models import compiling
from textcraftor.models.compiling import compile_denoiser


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # said by dynamo's own look at the inputs
def test_a_compiled_unet_has_the_same_gradients(model, monkeypatch):
    """torch.compile for real, for some blocks; the inductor would take minutes, so its graphs run as they are."""
    monkeypatch.setattr(compiling, "BLOCKS", ("BasicTransformerBlock",))
    said = compile_denoiser(model, 64, 64, backend="aot_eager")
    assert "denoiser compiled" in said
    assert model.denoiser.mid_block.attentions[0].transformer_blocks[0]._compiled_call_impl is not None


def test_a_compiler_that_errs_by_a_percent_is_refused(model, monkeypatch):
    """Only the gradient is wrong: the output is what it was."""
    genuine = nn.Module.compile

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return tensor.clone()

        @staticmethod
        def backward(ctx, gradient):
            return 1.01 * gradient

    def flawed(block, **options):
        genuine(block, backend="eager")
        block._compiled_call_impl = lambda *args, **kwargs: Scaled.apply(block.forward(*args, **kwargs))

    monkeypatch.setattr(nn.Module, "compile", flawed)
    with pytest.raises(UsageError, match=r"output 0.0e\+00, gradient of latents .* use compile=false"):
        compile_denoiser(model, 64, 64)
