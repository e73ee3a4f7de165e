"""What fits into memory: one step is measured, then as many activations are kept as the budget allows."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from textcraftor.errors import UsageError
from textcraftor.inference.generate import batches
from textcraftor.models.base import Conditioning, DiffusionModel
from textcraftor.sampling.chain import guided
from textcraftor.training.phases import GB, resident_bytes
from textcraftor.training.processes import processes_of_this_run

if TYPE_CHECKING:
    from textcraftor.models.stable_diffusion import StableDiffusion
    from textcraftor.training.reward_tuning import RewardTuning

SHARE = {"cuda": 0.92, "cpu": 0.8}  # of what is free that `auto` takes


@dataclass(frozen=True)
class Plan:
    """What is kept for the backward pass, and how many prompts are computed at a time.

    Args:
        kept_steps: so many steps with a gradient keep their activations; the others compute them again.
        blocks: ... block by block.
        decoder: the decoder keeps its activations; else it computes them again, picture by picture.
        micro_batch: prompts at a time; a smaller one than the batch accumulates gradients.
        gradient_steps: how many steps carry a gradient.
        predicted, budget: bytes.
        replanned: memory ran out all the same, once.
    """

    kept_steps: int
    blocks: bool
    decoder: bool
    micro_batch: int
    gradient_steps: int
    predicted: float
    budget: float
    replanned: bool = False

    def __str__(self) -> str:
        steps = f"{min(self.kept_steps, self.gradient_steps)} of {self.gradient_steps} gradient steps"
        unit = "block by block" if self.blocks else "step by step"
        again = "" if self.kept_steps >= self.gradient_steps else f", the others again {unit}"
        decoder = "decoder kept" if self.decoder else "decoder again picture by picture"
        sizes = f"predicted peak {self.predicted / GB:.2f} GB of {self.budget / GB:.2f} GB"
        return f"memory: keeps {steps}{again}; {decoder}; {self.micro_batch} prompts at a time; {sizes}"

    def halved(self) -> Plan:
        """The same with half as many prompts at a time, after memory ran out all the same."""
        return replace(self, micro_batch=-(-self.micro_batch // 2), replanned=True)

    def micro_batches(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        return batches(rows, self.micro_batch)


@dataclass(frozen=True)
class Cost:
    """Bytes that stay for the backward pass, and the most that exist at once through both passes."""

    kept: float
    peak: float


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, on any device, from when it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            self._meet(tensor, made_here=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._meet(tensor, made_here=True)
        return result

    def _meet(self, tensor: object, made_here: bool) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if made_here else 0
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known[key] = weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.now -= size


def cost_of(compute: Callable[[], Tensor]) -> Cost:
    """Run something with its backward pass, and count; what does not even fit alone costs infinitely much."""
    try:
        with LiveBytes() as live:
            result = compute()
            kept = live.now
            if result.requires_grad:
                result.float().sum().backward()
            del result
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return Cost(math.inf, math.inf)
    return Cost(kept, live.peak)


class Costs(Protocol):
    """What a row of a batch costs in memory, and the ways to spend less."""

    @property
    def gradient_steps(self) -> int: ...

    @property
    def choices(self) -> Sequence[tuple[int, bool, bool]]:
        """(kept_steps, blocks, decoder) of `Plan`, the fastest first."""

    def peak(self, kept: int, blocks: bool, decoder: bool, rows: int) -> float:
        """The most bytes that exist at once beside what is always there, for so many rows at a time."""


class Activations:
    """What one prompt costs on the real model, each part measured when it is first asked for."""

    def __init__(self, method: RewardTuning, prompt: str) -> None:
        self.method = method
        sampling, schedule, unet = method.sampling, method.schedule, method.model.unet
        self.prompt = prompt
        make_gradients(method.model)
        mixed = unet.dtype != method.model.compute_dtype
        self.cast = sum(p.numel() for p in unet.parameters()) * method.model.compute_dtype.itemsize if mixed else 0
        options = {"detach_negative": method.detach_negative, "clean": method.draw.clean(0, 1, [0])}
        self.chain = sampling.chain(method.model, [0], kept_steps=0, **options)
        with torch.no_grad():
            encoded = self._encode()
        self.conditioning_at = partial(schedule.at, {name: one.map(_leaf) for name, one in encoded.items()})
        latents = method.rollout(self.chain, self.chain.start(), self.conditioning_at)
        self.latents, self.through_pictures = latents.detach(), latents.requires_grad
        self.pictures, self.gradient_steps = len(self.latents), self.chain.gradient_steps

    def _encode(self) -> dict[str, Conditioning]:
        negative_prompts, model = [self.method.sampling.negative_prompt], self.method.model
        return {name: model.encode([self.prompt], negative_prompts, name) for name in self.method.schedule.encoders}

    def _step(self, blocks: bool) -> Cost:
        t, start = self.chain.timesteps[-1], self.chain.noise()
        with recomputing(self.method.model, unet=blocks):
            cost = cost_of(lambda: guided(self.chain, _leaf(start), t, self.conditioning_at(t)))
        return Cost(cost.kept - self.cast, cost.peak - self.cast)

    def _decoding(self, recompute: bool) -> Cost:
        with recomputing(self.method.model, decoder=recompute):
            return cost_of(lambda: self.method.model.decode(self._input(self.latents[:1])))

    def _input(self, tensor: Tensor) -> Tensor:
        """As it comes to decoder and scorers: with a gradient, unless the policy has none there."""
        return _leaf(tensor) if self.through_pictures else tensor

    @cached_property
    def encoding(self) -> Cost:
        return cost_of(lambda: torch.cat([one.prompt_embeds for one in self._encode().values()]))

    @cached_property
    def step(self) -> Cost:
        return self._step(blocks=False)

    @cached_property
    def step_by_blocks(self) -> Cost:
        return self._step(blocks=True)

    @cached_property
    def decoding(self) -> Cost:
        return self._decoding(recompute=False)

    @cached_property
    def decoding_again(self) -> Cost:
        return self._decoding(recompute=True)

    @cached_property
    def reward(self) -> Cost:
        with torch.no_grad():
            images = self.method.model.decode(self.latents[:1])
        mix, shown = self.method.mix, self._input(images)

        def objective() -> Tensor:
            scores = mix(shown, [self.prompt])
            for name, score in scores.items():
                if self.through_pictures and mix.weights[name]:
                    self._check_differentiable(name, score)
            return mix.objective(scores)

        return cost_of(objective)

    @staticmethod
    def _check_differentiable(name: str, score: Tensor) -> None:
        """Refuse a scorer that this policy could learn nothing from."""
        if not score.requires_grad:
            raise UsageError(
                f"rewards.{name} passes no gradient to the pictures: gradient=ddpo learns from such a scorer too"
            )

    @property
    def choices(self) -> list[tuple[int, bool, bool]]:
        steps = self.gradient_steps
        return [(steps, False, True), *((kept, False, False) for kept in range(steps, -1, -1)), (0, True, False)]

    def peak(self, kept: int, blocks: bool, decoder: bool, prompts: int) -> float:
        texts = self.encoding.kept * (prompts + 1) / 2  # the negative prompt is encoded once for all
        casts = (kept + 1) * self.cast  # each step under autocast keeps a copy of the weights, whatever the batch
        held, pictures = casts + texts + kept * self.step.kept * prompts, self.pictures * prompts
        decoded = self.decoding.kept * pictures if decoder else 0.0
        rewarding = held + decoded + self.reward.peak * pictures
        decoding = held + (self.decoding.peak * pictures if decoder else self.decoding_again.peak)
        if kept < self.gradient_steps:
            stepping = held + (self.step_by_blocks if blocks else self.step).peak * prompts
        else:
            stepping = held + (self.step.peak - self.step.kept) * prompts
        return max(rewarding, decoding, stepping)


def plan_memory(budget: str | float, device: torch.device, costs: Costs, batch: int, updating: float) -> Plan:
    """Choose what to keep of a batch: all, else the more the better.

    Args:
        budget: GB in all, what is in use now included; `auto` takes most of what is free.
        costs: of one row of the batch.
        batch: rows of a step, of this process alone.
        updating: bytes of gradients and optimiser that come to what is in use now.

    Raises:
        UsageError: not even one row fits.
    """
    limit = available_bytes(device) if budget == "auto" else float(budget) * GB
    fixed = resident_bytes(device) + updating
    size = batch
    while True:
        for kept, blocks, decoder in costs.choices:
            need = fixed + costs.peak(kept, blocks, decoder, size)
            if need <= limit:
                return Plan(kept, blocks, decoder, size, costs.gradient_steps, need, limit)
        if size == 1:
            raise UsageError(
                f"memory.budget={limit / GB:.2f} GB, but one prompt at a time needs {need / GB:.2f} GB: "
                "raise it, tune with LoRA, choose fewer scorers or smaller pictures"
            )
        size = -(-size // 2)


def make_gradients(model: StableDiffusion) -> None:
    """Those of the weights, empty, so that they are there before activations are counted."""
    for part in (model.unet, *model.text_encoders.values()):
        for parameter in part.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(True)


@contextlib.contextmanager
def recomputing(model: DiffusionModel, unet: bool = False, decoder: bool = False) -> Iterator[None]:
    model.checkpoint_blocks(unet, decoder)
    try:
        yield
    finally:
        model.checkpoint_blocks(unet=False, decoder=False)


def available_bytes(device: torch.device) -> float:
    """What `auto` may use in all: what this process holds, and most of what is free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = float(torch.cuda.mem_get_info(device)[0])
    else:
        free = min(psutil.virtual_memory().available, _container_bytes()) / processes_of_this_run().num_processes
    return resident_bytes(device) + SHARE[device.type] * free


def _container_bytes() -> float:
    """What a container's limit leaves, where there is one (cgroup v2)."""
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    with contextlib.suppress(OSError, ValueError):
        return float(limit.read_text()) - float(used.read_text())
    return math.inf


def out_of_memory(error: Exception) -> bool:
    said = ("not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)
