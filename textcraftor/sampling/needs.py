"""What a gradient policy declares that it needs, so that a configuration is refused before a model loads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from textcraftor.errors import UsageError


@dataclass(frozen=True)
class Needs:
    """What a policy needs; functions get the number of steps and the policy's own options.

    Args:
        pictures: it starts from real pictures instead of noise.
        draws: its steps are random; not every sampler can do that.
        check: refuses options that so many steps cannot have.
        reach: how many last steps the tuned encoder must condition, whatever the policy draws.
    """

    pictures: bool = False
    draws: bool = False
    check: Callable[..., None] = lambda steps, **options: None
    reach: Callable[..., int] = lambda steps, **options: 1


def needs(**what: Any) -> Callable[[Callable], Callable]:
    """Set a policy's needs."""

    def attach(policy: Callable) -> Callable:
        policy.needs = Needs(**what)  # type: ignore[attr-defined]
        return policy

    return attach


def needs_of(policy: Callable) -> Needs:
    """What a policy with its options needs; by default nothing."""
    function, given = (policy.func, policy.keywords) if isinstance(policy, partial) else (policy, {})
    declared: Needs = getattr(function, "needs", Needs())
    usual = {
        name: one.default
        for name, one in inspect.signature(function).parameters.items()
        if one.kind is one.KEYWORD_ONLY
    }
    options = {name: value for name, value in {**usual, **given}.items() if value is not inspect.Parameter.empty}
    return Needs(
        declared.pictures, declared.draws, partial(declared.check, **options), partial(declared.reach, **options)
    )


def check_k(steps: int, k: int | None, **options: Any) -> None:
    """Refuse more steps with a gradient than there are."""
    if k is not None and not 1 <= k <= steps:
        raise UsageError(
            f"gradient.k={k} must lie between 1 and training.sampling.steps={steps}: lower it or use gradient=full"
        )


def steps_between(steps: int, first: float, last: float) -> range:
    """The steps of a chain from one share of it to another, both included."""
    return range(round(steps * first), min(round(steps * last), steps - 1) + 1)


def check_span(steps: int, first: float, last: float, jumps: int = 1) -> None:
    """Refuse more jumps than there are steps to jump from."""
    late = len(steps_between(steps, first, last))
    if not 1 <= jumps <= late:
        raise UsageError(
            f"gradient.jumps={jumps} must lie between 1 and {late}, the steps from gradient.first to gradient.last"
        )


def after_first(steps: int, first: float, **options: Any) -> int:
    """The steps from the first that may be drawn on."""
    return steps - round(steps * first)


def any_of(steps: int, k: int | None, **options: Any) -> int:
    """So many that one of k drawn steps is among them."""
    return steps - (k or steps) + 1
