"""Random numbers from seeds of up to 64 bits; torch's CPU generator and numpy's old one take 32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from textcraftor.config.fields import MOST_SEED
from textcraftor.errors import UsageError

LARGE = 9  # the mark of a seed of two words; 1 to 8 mark what else a run draws
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


def run_rng(seed: int, *place: int) -> np.random.Generator:
    """Draws what a run of this seed needs at a place, such as a step.

    numpy joins the 32-bit words of all numbers and forgets zeros at the end, so that without a mark a seed of two words
    would draw at its first place what a smaller seed draws at a later one.
    """
    return np.random.default_rng((seed, *place, *((LARGE,) if seed >= BEYOND else ())))


def seed_of_32_bits(*entropy: int) -> int:
    """One seed that depends on all of these numbers."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def global_seed(seed: int) -> int:
    """Of a run's seed, what the global generators can be seeded with: itself, if they can take it."""
    return seed if seed < BEYOND else seed_of_32_bits(seed)


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw from a seed, and leave the global generators as they were; None draws from these."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
