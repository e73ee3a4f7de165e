"""Random numbers from seeds of up to 64 bits; torch's CPU generator and numpy's old one take 32."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from textcraftor.config.fields import MOST_SEED
from textcraftor.errors import UsageError

BEYOND = 2**32  # the first seed that torch's generator does not tell from a smaller one


def unit_noise(shape: tuple[int, ...], seed: int) -> Float[Tensor, ...]:
    """Normal noise on the CPU: below 2^32 what torch draws from `Generator().manual_seed(seed)`, else numpy's PCG64.

    Args:
        seed: in [0, 2^64).

    Raises:
        UsageError: another seed.
    """
    if not 0 <= seed <= MOST_SEED:
        raise UsageError(f"seed={seed} must be a whole number from 0 on, at most {MOST_SEED}")
    if seed < BEYOND:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def seed_of_32_bits(*entropy: int) -> int:
    """One seed that depends on all of these numbers."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def global_seed(seed: int) -> int:
    """Of a run's seed, what the global generators can be seeded with: itself, if they can take it."""
    return seed if seed < BEYOND else seed_of_32_bits(seed)
