"""The optimiser, and where in the chain the gradient flows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textcraftor.config.fields import anything, flag, number, number_or, whole, word
from textcraftor.config.rules import Group, is_number
from textcraftor.errors import UsageError


def are_betas(value: Any) -> bool:
    """Whether these are the decays of Adam's two averages."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(is_number(one) and 0 <= one < 1 for one in value)


@dataclass
class Optim(Group):
    """`optim`: the optimiser and its constructor's arguments; further ones may be added."""

    _target_: str = word()
    """The import path of its class."""
    _partial_: bool = flag()
    """Always true: the parameters come later."""
    lr: Any = number_or("auto", above=0, default="auto")
    """The learning rate of every part whose own is auto; auto: what suits the model, model.training.lr."""
    betas: Any = anything("two numbers in [0, 1), as {key}=[0.9,0.999]", are_betas, default=(0.9, 0.999))
    """Decay of the averages of the gradient and of its square."""
    weight_decay: float = number(least=0, default=0.0)
    """Decoupled from the gradient."""
    fused: bool | None = flag(default=None)
    """One kernel for all parameters."""


@dataclass
class Gradient(Group):
    """`gradient`: the policy that says where in the chain the gradient flows, and its arguments."""

    _target_: str = word()
    """The import path of the policy."""
    _partial_: bool = flag()
    """Always true: the chain comes later."""
    k: int | None = whole(default=None)
    """So many steps carry the gradient; null, where a policy allows it: all."""
    n: int = whole(default=1)
    """low_variance: so many fresh noisings of the result."""
    first: float = number(default=0.0)
    """refl, direct: the first step to jump from, as a share of the chain."""
    last: float = number(default=1.0)
    """The last one."""
    jumps: int = whole(least=1, default=1)
    """refl: from so many of these steps, one chain for all."""
    mean: float = number(least=0, most=1, default=0.0)
    """random_k: of the first step with a gradient, as a share of the chain."""
    sd: float = number(least=0, default=0.0)
    """Its standard deviation."""

    discount: float = number(least=0, most=1, default=0.0)
    """leap, bridge: of the gradient through the latents that the denoiser sees."""
    late: float = number(least=0, default=1.0)
    """sparse, bridge: a step's chance grows with this power of its place in the chain."""
    scale: float = number(above=0, default=1.0)
    """sparse, bridge: of the gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 1:
            raise UsageError(
                f"gradient.n={self.n} must be at least 1: gradient=last_k gradient.k=1 is the same without noise"
            )
        if not 0 <= self.first <= self.last <= 1:
            raise UsageError(f"gradient.first={self.first} and gradient.last={self.last} must rise within [0, 1]")
