"""torch.compile for the denoiser, used only where its gradients agree with those of the uncompiled one."""

from __future__ import annotations

import torch
from torch import Tensor

from textcraftor.errors import UsageError
from textcraftor.models.model import Model

BLOCKS = ("ResnetBlock2D",)  # beside those that diffusers names: most of a network, compiled once for each shape
SHAPES = 128  # more than any denoiser has, times with and without a gradient
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # relative, in the Euclidean norm


def compile_denoiser(model: Model, height: int, width: int, backend: str = "inductor") -> str:
    """Compile the denoiser block by block.

    Args:
        height, width: of the pictures, in pixels.
        backend: of torch.compile.

    Returns:
        How far the compiled results lie from the others, in a line.

    Raises:
        UsageError: too far; on some machines compiled float32 gradients have been silently wrong by several percent.
    """
    eager = probe(model, height, width)
    torch._dynamo.config.recompile_limit = SHAPES
    repeated = {*BLOCKS, *(model.denoiser._repeated_blocks or ())}
    for block in model.denoiser.modules():
        if type(block).__name__ in repeated:
            block.compile(backend=backend)
    compiled = probe(model, height, width)
    errors = {name: _relative_error(compiled[name], eager[name]) for name in eager}
    differences = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    limit = TOLERANCE[model.compute_dtype]
    if not all(error <= limit for error in errors.values()):
        raise UsageError(
            f"compile=true: torch.compile changes what the denoiser computes on this machine, relatively by "
            f"{differences}, more than {limit:g}: use compile=false"
        )
    return f"denoiser compiled; relative difference of {differences}"


def probe(model: Model, height: int, width: int) -> dict[str, Tensor]:
    """The denoiser's output and its gradients for two samples, to compare before and after a change.

    torch's random state is left alone.
    """
    latents = model.noise([0, 1], height, width).requires_grad_()
    branch = model.encode([""] * 2, None, size=(height, width)).prompt.map(lambda one: one.detach().requires_grad_())
    embeds = list(branch.mixed.values())
    t = torch.tensor(model.noise_schedule.timesteps // 2)
    weights = [parameter for parameter in model.denoiser.parameters() if parameter.requires_grad]
    output = model.predict(latents, t, branch)
    loss = (output * model.noise([2, 3], height, width)).sum()
    of_latents, *others = torch.autograd.grad(loss, [latents, *embeds, *weights])
    of_embeds = torch.cat([one.flatten() for one in others[: len(embeds)]])
    of_weights = others[len(embeds) :]
    results = {"output": output.detach(), "gradient of latents": of_latents, "of embeddings": of_embeds}
    return results | ({"of weights": torch.cat([one.flatten() for one in of_weights])} if weights else {})


def _relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).double().norm() / expected.double().norm())
