"""Everything that changes while training: what learns, its optimiser and averages, counters and random states."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from textcraftor.files.reading import shaped
from textcraftor.models.tuning import Learner, load_state, state_of
from textcraftor.rewards.total import RewardSum
from textcraftor.training.fitting import new_ema
from textcraftor.training.memory import Plan
from textcraftor.training.processes import average_gradients, processes_of_this_run
from textcraftor.training.rates import LearningRates

POINT = {"step": int, "held_out": float, "held_out_error": float, "alarms": [str]}
WATCHED = {"points": [POINT], "stopped_by": [str], "best": object, "saved_step?": int}
HALF_SCALE = 2.0**16  # of gradients where float16 would lose small ones
HALF_INTERVAL = 2000  # steps without overflow after which the scale doubles
NEVER = 2**31 - 1
KEPT = ("kept_steps", "blocks", "decoder", "micro_batch", "gradient_steps", "replanned")  # of a plan, with its choices


class TrainingState:
    """What a checkpoint holds.

    Args:
        learners: the networks that learn.
        plan: what is kept for the backward pass; changes once where memory runs out all the same.
        new_optimizer: called with parameter groups.
        share_of_rate: of each learner's learning rate, by step.
        ema_decay: 0 keeps the last weights, otherwise those that are watched and saved are this moving average.
        half: whether gradients pass through float16, and so need scaling.
        budget: that the plan is for.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        rewards: RewardSum,
        plan: Plan,
        new_optimizer: Callable[..., torch.optim.Optimizer],
        share_of_rate: Callable[[int], float],
        ema_decay: float = 0.0,
        half: bool = False,
        budget: str | float = "auto",
    ) -> None:
        self.budget = budget
        self.learners, self.rewards, self.plan, self.half = list(learners), rewards, plan, half
        self.optimizer = new_optimizer([{"params": one.parameters, "lr": one.lr} for one in learners])
        self.learning_rates = LearningRates(self.optimizer, share_of_rate)
        # Skips the update on the device where a gradient is not finite; scaling by 1 changes no number.
        scale, interval = (HALF_SCALE, HALF_INTERVAL) if half else (1.0, NEVER)
        self.scaler = torch.amp.GradScaler(self.parameters[0].device.type, init_scale=scale, growth_interval=interval)
        self.ema = new_ema(self.parameters, ema_decay)
        self.step = self.skipped = 0
        self._norms = torch.zeros(0)
        self.watched: dict[str, Any] = {
            "points": [],
            "best": state_of(self.learners),
            "saved_step": 0,
            "stopped_by": [],
        }

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for learner in self.learners for parameter in learner.parameters]

    def learn(self, progress: float) -> None:
        """Switch gradients on for what learns at this point of the training, at this step's learning rate."""
        self.optimizer.zero_grad()
        self.learning_rates.set(self.step)
        for learner in self.learners:
            learner.learn(progress)

    def update(self, max_grad_norm: float) -> Tensor:
        """One optimiser step, left out on the device where a gradient is not finite; returns the gradient's norm."""
        average_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        learning = [parameter for parameter in self.parameters if parameter.grad is not None]
        self._norms = torch.stack([parameter.grad.norm() for parameter in learning])  # type: ignore[union-attr]
        norm = self._norms.norm()
        nn.utils.clip_grads_with_norm_(learning, max_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            for parameter in self.parameters:  # diffusers' average would jump to whatever does not learn just now
                parameter.requires_grad_(True)
            self.ema.step(self.parameters)
        return norm

    def skip(self, figures: Mapping[str, float]) -> int:
        """Count an update that was left out, and return the count; not one that only float16's range made necessary."""
        in_range = all(math.isfinite(value) for name, value in figures.items() if name != "grad_norm")
        if not (self.half and in_range and self.scaler.get_scale() >= 1):
            self.skipped += 1
        return self.skipped

    def broken_tensor(self) -> str:
        """The name of the first weight whose last gradient was not finite."""
        names = [
            f"{learner.part}.{name}"
            for learner in self.learners
            for name, parameter in learner.named_parameters()
            if parameter.grad is not None
        ]
        return next(name for name, norm in zip(names, self._norms.tolist(), strict=True) if not math.isfinite(norm))

    @property
    def rates(self) -> list[float]:
        """The learners' learning rates in the present step."""
        return [group["lr"] for group in self.optimizer.param_groups]

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, what learns has its moving average for weights, and drawing random numbers leaves no trace."""
        drawn = random_state()
        if self.ema:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            if self.ema:
                self.ema.restore(self.parameters)
            set_random_state(drawn)

    def state_dict(self) -> dict[str, Any]:
        return {
            "learned": state_of(self.learners),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else {},
            "rewards": {name: value.clone() for name, value in self.rewards.named_buffers(recurse=False)},
            "step": self.step,
            "skipped": self.skipped,
            "watched": self.watched,
        }

    def process_state(self) -> dict[str, Any]:
        """What is each process's own: random states, and its plan with what that is for."""
        plan = {name: getattr(self.plan, name) for name in KEPT}
        return {"random": random_state(), "plan": plan, "planned_for": self._planned_for}

    def load_process_state(self, state: dict[str, Any]) -> None:
        """Put back what `process_state` returned; no plan for another device, budget or number of processes."""
        set_random_state(state["random"])
        if state["planned_for"] == self._planned_for:
            plan = replace(self.plan, **{name: state["plan"][name] for name in KEPT})
            if not (plan.kept_steps >= 0 and plan.micro_batch >= 1 and plan.gradient_steps >= 0):
                raise ValueError(f"its plan is {plan}")
            self.plan = plan

    @property
    def _planned_for(self) -> list[str]:
        return [self.parameters[0].device.type, str(self.budget), str(processes_of_this_run().num_processes)]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned.

        Raises:
            ValueError, KeyError, TypeError, RuntimeError: it is not that, or holds weights that are not finite.
        """
        for tensor in tree_leaves([state["learned"], state["watched"]["best"], state["ema"]]):
            if isinstance(tensor, Tensor) and not tensor.isfinite().all():
                raise ValueError("a weight is not finite")
        shaped("watched", state["watched"], WATCHED)
        load_state(self.learners, state["learned"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.parameters[0].device)
        for name, value in self.rewards.named_buffers(recurse=False):
            value.copy_(state["rewards"][name])
        self.step, self.skipped, self.watched = state["step"], state["skipped"], state["watched"]


def random_state() -> dict[str, Any]:
    """Every random state of this process, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()  # type: ignore[misc]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
