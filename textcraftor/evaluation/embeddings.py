"""How far training has moved what the text encoders say: a sign of over-optimisation that needs no picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from textcraftor.inference.generate import Sampling, batches
from textcraftor.models.model import Model
from textcraftor.sampling.conditioning import ConditioningSchedule


@torch.no_grad()
def embedding_drift(
    model: Model,
    sampling: Sampling,
    prompts: Sequence[str],
    before: ConditioningSchedule,
    after: ConditioningSchedule,
    batch_size: int,
) -> np.ndarray:
    """|after - before| / |before| of each prompt's embedding, (prompts,), norms over tokens and channels.

    It is what the schedules give the denoiser in its last step; where that is several tensors, as hidden states and a
    pooled embedding, the largest counts. 0: nothing has moved.
    """
    shares = []
    for texts in batches(prompts, batch_size):
        encoded = sampling.encode(model, texts, dict.fromkeys([*before.encoders, *after.encoders]))
        first, last = (schedule.at(encoded, 0).prompt.mixed for schedule in (before, after))
        moved = [(last[name] - one).flatten(1).norm(dim=1) / one.flatten(1).norm(dim=1) for name, one in first.items()]
        shares.append(torch.stack(moved).amax(0).float().cpu().numpy())
    return np.concatenate(shares)
