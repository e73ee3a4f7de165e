"""Which frozen parts leave the device, and in which order: what costs the least time leaves first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from textcraftor.errors import UsageError
from textcraftor.models.placing import Part, Place

Places = dict[str, Place]


def check_places(chosen: Mapping[str, Place], parts: Sequence[Part], processes: int) -> None:
    """Refuse a place that a part cannot have.

    Raises:
        UsageError: no such part, or another place, or shares for a single process.
    """
    choices = {part.name: ("resident", *part.choices) for part in parts}
    for name, place in chosen.items():
        if name not in choices:
            raise UsageError(
                f"memory.places.{name}={place}: what may be placed here is {', '.join(choices) or 'nothing'}"
            )
        if place not in choices[name]:
            raise UsageError(f"memory.places.{name}={place} must be one of {', '.join(choices[name])}")
        if place == "sharded" and processes == 1:
            raise UsageError(f"memory.places.{name}=sharded shares weights between processes, and here is one")


def heavy_places(parts: Sequence[Part], chosen: Mapping[str, Place], processes: int) -> Iterator[Places]:
    """Places that take time at each step: none; then the denoiser in shares, then it and then the VAE layer by layer.

    Args:
        chosen: places that stay.
    """
    now: Places = {part.name: chosen.get(part.name, "resident") for part in parts}
    free = {part.name: part.choices for part in parts if part.name not in chosen}
    yield now
    if processes > 1 and "sharded" in free.get("denoiser", ()):
        yield {**now, "denoiser": "sharded"}
    for name in ("denoiser", "vae"):
        if "layer_by_layer" in free.get(name, ()):
            now = {**now, name: "layer_by_layer"}
            yield now


def light_places(parts: Sequence[Part], moved: Places, host: float, chosen: Mapping[str, Place]) -> Iterator[Places]:
    """Beside `moved`, places that take little time: none; text encoders leave, the largest first; then the scorers.

    Args:
        host: bytes for them in memory.
    """
    places, used = dict(moved), 0.0
    yield places
    free = [part for part in parts if part.name not in chosen and "while_it_works" in part.choices]
    for part in sorted(free, key=lambda one: (not one.alone, -one.nbytes)):
        used += part.nbytes
        if used > host and "on_disk" not in part.choices:
            return
        places = {**places, part.name: "while_it_works" if used <= host else "on_disk"}
        yield places


def differentiable(places: Mapping[str, Place], blocks: bool, decoder: bool) -> bool:
    """Whether a gradient passes in these places with what is kept: layers that come and go are computed again, block by
    block and picture by picture."""
    return (blocks or places.get("denoiser") != "layer_by_layer") and not (
        decoder and places.get("vae") == "layer_by_layer"
    )


def peak_of_parts(parts: Sequence[Part], places: Mapping[str, Place], peak: float, processes: int) -> float:
    """The most bytes at once beside what is fixed, which counts all parts as if they were on the device.

    Args:
        peak: of what is computed.
    """
    saved = sum(part.saved(places[part.name], processes) for part in parts)
    back = {part: part.returning(places[part.name]) for part in parts}
    alone = max((size for part, size in back.items() if part.alone), default=0.0)
    beside = sum(size for part, size in back.items() if not part.alone)
    return max(peak + beside, alone) - saved
