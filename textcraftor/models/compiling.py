"""torch.compile for the UNet, used only where its gradients agree with those of the uncompiled one."""

from __future__ import annotations

import torch
from torch import Tensor

from textcraftor.errors import UsageError
from textcraftor.models.stable_diffusion import StableDiffusion

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")  # most of a UNet, over and over: compiled once for each shape
SHAPES = 128  # more than any UNet has, times with and without a gradient
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # relative, in the Euclidean norm


def compile_unet(model: StableDiffusion, height: int, width: int, backend: str = "inductor") -> str:
    """Compile the UNet block by block.

    Args:
        height, width: of the pictures, in pixels.
        backend: of torch.compile.

    Returns:
        How far the compiled results lie from the others, in a line.

    Raises:
        UsageError: too far; on some machines compiled float32 gradients have been silently wrong by several percent.
    """
    eager = _results(model, height, width)
    torch._dynamo.config.recompile_limit = SHAPES
    for block in model.unet.modules():
        if type(block).__name__ in BLOCKS:
            block.compile(backend=backend)
    compiled = _results(model, height, width)
    errors = {name: _relative_error(compiled[name], eager[name]) for name in eager}
    found = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    limit = TOLERANCE[model.compute_dtype]
    if not all(error <= limit for error in errors.values()):
        raise UsageError(
            f"compile=true: torch.compile changes what the UNet computes on this machine, relatively by {found}, more "
            f"than {limit:g}: use compile=false"
        )
    return f"UNet compiled; relative difference of {found}"


def _results(model: StableDiffusion, height: int, width: int) -> dict[str, Tensor]:
    """The UNet's output and its gradients for two samples; torch's random state is left alone."""
    latents = model.noise([0, 1], height, width).requires_grad_()
    prompt_embeds = model.encode([""] * 2, [""] * 2).prompt_embeds.detach().requires_grad_()
    t = torch.tensor(len(model.alphas_cumprod) // 2)
    weights = [parameter for parameter in model.unet.parameters() if parameter.requires_grad]
    output = model.predict(latents, t, prompt_embeds)
    loss = (output * model.noise([2, 3], height, width)).sum()
    of_latents, of_embeds, *of_weights = torch.autograd.grad(loss, [latents, prompt_embeds, *weights])
    found = {"output": output.detach(), "gradient of latents": of_latents, "of embeddings": of_embeds}
    return found | ({"of weights": torch.cat([one.flatten() for one in of_weights])} if weights else {})


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).double().norm() / expected.double().norm())
