"""Which encoder conditions which noise level: tuning, switching, interpolation and mixing are one schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from torch import Tensor

from textcraftor.errors import UsageError
from textcraftor.models.base import Conditioning

Weights = Mapping[str, float]


@dataclass(frozen=True)
class ConditioningSchedule:
    """Weights over encoders by name: `early` above a noise level, `late` from it down to the picture.

    The level is a training timestep, so another step count or another sampler keeps its meaning.

    Args:
        switch_timestep: the highest timestep that `late` conditions.
        late: weights over {original, tuned...} in the late steps; they need not sum to 1.
        early: weights before; defaults to the original encoder alone.
    """

    switch_timestep: int
    late: Weights
    early: Weights

    @classmethod
    def original(cls) -> ConditioningSchedule:
        """The original encoder on every step."""
        return cls(0, {"original": 1.0}, {"original": 1.0})

    @classmethod
    def tuned_on(
        cls, steps: Literal["all", "last_n"], n: int, timesteps: Tensor, late: Weights | None = None
    ) -> ConditioningSchedule:
        """The schedule that tuning uses: the tuned encoder on all steps, or on the last n (TextCraftor, section 3.2).

        Args:
            timesteps: the sampler's timesteps, highest first.
        """
        late = late or {"tuned": 1.0}
        if steps == "all":
            return cls(int(timesteps.max()), late, late)
        if not 1 <= n <= len(timesteps):
            raise UsageError(f"conditioning.n={n} must lie between 1 and sampling.steps={len(timesteps)}")
        return cls(int(timesteps[-n]), late, {"original": 1.0})

    def weights(self, t: Tensor | int) -> Weights:
        return self.late if int(t) <= self.switch_timestep else self.early

    @property
    def encoders(self) -> list[str]:
        """The names of all encoders that some step needs."""
        return list(dict.fromkeys([*self.early, *self.late]))

    def at(self, encoded: Mapping[str, Conditioning], t: Tensor | int) -> Conditioning:
        """The conditioning of one timestep, from each encoder's."""
        weights = self.weights(t)
        if len(weights) == 1 and next(iter(weights.values())) == 1.0:
            return encoded[next(iter(weights))]
        return Conditioning.mix(encoded, weights)

    def renamed(self, names: Mapping[str, str]) -> ConditioningSchedule:
        """The same with other names for some encoders."""
        late, early = ({names.get(name, name): one for name, one in stage.items()} for stage in (self.late, self.early))
        return ConditioningSchedule(self.switch_timestep, late, early)

    def to_dict(self) -> dict:
        return asdict(self)
