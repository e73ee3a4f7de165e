"""What adapters learn from pairs of pictures: differential LoRA (ArtAug, arXiv 2412.12888), and its two rivals.

All share one signature: pairs in, adapters of each part that learns out, under peft's names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor, nn

from textcraftor.data.blend import Example
from textcraftor.enhancement.adapters import PairAdapters, State, combined
from textcraftor.models.base import Size
from textcraftor.models.model import Model
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.training.caption_tuning import denoising_losses
from textcraftor.training.densities import Densities
from textcraftor.training.fitting import FitSettings, fit
from textcraftor.training.latents import Latents
from textcraftor.training.processes import processes_of_this_run


@dataclass(frozen=True)
class Pairs:
    """Pictures before and after, as latents, with their prompts.

    Args:
        networks: the parts that get adapters, each with what LoRA adapts in it.
        schedule: which encoder conditions which noise level.
        size: of the pictures, height and width in pixels.
        batch_size: pictures, or pairs, of a step.
        settings: of each fit.
        folder: for what is fitted on the way, so that an interrupted training goes on.
        beta: of Diffusion-DPO, how near the adapters stay to the model without them.
    """

    model: Model
    networks: Mapping[str, tuple[nn.Module, LoraConfig]]
    schedule: ConditioningSchedule
    prompts: Sequence[str]
    before: Float[Tensor, "pairs channels h w"]
    after: Float[Tensor, "pairs channels h w"]
    size: Size
    densities: Densities
    batch_size: int
    settings: FitSettings
    folder: Path
    seed: int = 0
    beta: float = 2000.0

    def __len__(self) -> int:
        return len(self.prompts)

    def losses(self, latents: Tensor, indices: Sequence[int], step: int) -> Float[Tensor, " batch"]:
        """The weighted denoising loss of some pictures; noise and noise levels are functions of picture and step."""
        name = f"{self.size[0]}x{self.size[1]}"
        stored = Latents({name: latents}, [(name, row) for row in range(len(latents))])
        process = processes_of_this_run().process_index
        examples = []
        for index in indices:
            rng = np.random.default_rng((self.seed, process, step, index))
            noise_seed, level = int(rng.integers(2**40, 2**48)), float(rng.random())
            examples.append(Example(index, self.prompts[index], noise_seed, level))
        return denoising_losses(self.model, self.schedule, stored, self.densities, examples)[0]

    def drawn(self, step: int) -> list[int]:
        """The pairs of a step; every one is drawn before one comes again."""
        places = (divmod(place, len(self)) for place in range(step * self.batch_size, (step + 1) * self.batch_size))
        return [int(self._order(epoch)[place]) for epoch, place in places]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch, 9)).permutation(len(self))

    def adapters(self, pairs: int = 1) -> nn.ModuleDict:
        """New adapters of every part."""
        return nn.ModuleDict(
            {part: PairAdapters.new(network, lora, pairs) for part, (network, lora) in self.networks.items()}
        )


class Method(Protocol):
    """How adapters learn from pairs."""

    def __call__(self, pairs: Pairs) -> dict[str, State]: ...


@contextlib.contextmanager
def attached(adapters: nn.ModuleDict) -> Iterator[None]:
    """Let every part compute with its adapters."""
    with contextlib.ExitStack() as stack:
        for one in adapters.values():
            stack.enter_context(one.attached())  # type: ignore[operator]
        yield


@contextlib.contextmanager
def ignored(adapters: nn.ModuleDict) -> Iterator[None]:
    """Let every part compute as without the adapters that are attached to it."""
    each: Any = adapters.values()
    for one in each:
        one.enabled = False
    try:
        yield
    finally:
        for one in each:
            one.enabled = True


def one_adapter(pairs: Pairs, loss: Callable[[nn.ModuleDict, int], Tensor]) -> dict[str, State]:
    """Fit one adapter to a loss over all pairs."""
    torch.manual_seed(pairs.seed)
    adapters = pairs.adapters()
    with attached(adapters):
        fit("adapters", adapters, lambda step: {"loss": loss(adapters, step)}, pairs.settings, pairs.folder)
    return {part: one.state() for part, one in adapters.items()}  # type: ignore[operator]


def differential(pairs: Pairs) -> dict[str, State]:
    """For each pair two adapters, the first of which learns the picture as it was, the second, on top of it, the
    enhanced one; the mean of the second ones is kept (ArtAug; DiffSynth-Studio's differential training).

    `batch_size` pairs learn at a time, prompts differing among them.
    """
    states: dict[str, list[State]] = {part: [] for part in pairs.networks}
    for number, chunk in enumerate(chunks(pairs)):
        adapters = {}
        with contextlib.ExitStack() as stack:
            for kind, latents in (("first", pairs.before), ("second", pairs.after)):
                torch.manual_seed(pairs.seed)
                adapters[kind] = pairs.adapters(len(chunk))
                stack.enter_context(attached(adapters[kind]))

                def loss_of(step: int, latents: Tensor = latents) -> dict[str, Tensor]:
                    return {"loss": pairs.losses(latents, chunk, step).sum()}  # noqa: B023

                fit(f"{kind}_{number}", adapters[kind], loss_of, pairs.settings, pairs.folder)
                adapters[kind].requires_grad_(False)
        for part, learnt in adapters["second"].items():
            states[part] += [learnt.state(pair) for pair in range(len(chunk))]  # type: ignore[operator]
    shares = [1 / len(pairs)] * len(pairs)
    return {part: combined(of_part, shares, pairs.networks[part][1].r) for part, of_part in states.items()}


def chunks(pairs: Pairs) -> list[list[int]]:
    """All pairs in groups of at most `batch_size`. No prompt comes twice in a group: the text chooses an encoder's
    adapter."""
    groups: list[list[int]] = []
    for index, prompt in enumerate(pairs.prompts):
        free = (
            group
            for group in groups
            if len(group) < pairs.batch_size and all(pairs.prompts[other] != prompt for other in group)
        )
        group = next(free, None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    return groups


def lora(pairs: Pairs) -> dict[str, State]:
    """Ordinary LoRA fine-tuning on the enhanced pictures alone."""
    return one_adapter(pairs, lambda adapters, step: pairs.losses(pairs.after, pairs.drawn(step), step).mean())


def dpo(pairs: Pairs) -> dict[str, State]:
    """Diffusion-DPO (Wallace et al. 2023) on both pictures of each pair, the enhanced one preferred."""
    return one_adapter(pairs, lambda adapters, step: dpo_loss(pairs, adapters, pairs.drawn(step), step))


def dpo_loss(pairs: Pairs, adapters: nn.ModuleDict, rows: Sequence[int], step: int) -> Float[Tensor, ""]:
    """-log sigmoid(-beta / 2 (d_after - d_before)) (Wallace et al. 2023, eq. 14), d how much larger a picture's loss is
    than without the adapters, which are attached, at the same noise and noise level."""
    with torch.no_grad(), ignored(adapters):
        usual = [pairs.losses(latents, rows, step) for latents in (pairs.before, pairs.after)]
    before, after = (pairs.losses(latents, rows, step) for latents in (pairs.before, pairs.after))
    margin = (after - usual[1]) - (before - usual[0])
    return -nn.functional.logsigmoid(-pairs.beta / 2 * margin).mean()


METHODS: dict[str, Method] = {"differential": differential, "lora": lora, "dpo": dpo}
