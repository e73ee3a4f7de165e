"""What prompts leave free and a picture's beauty depends on: style factors, how they are drawn, and `taste`.

Taste is the geometric mean of seven parts, so that no single factor can carry it: light, focus, ground, finish, shadow,
tint and composition. Which shapes and which word a picture shows never enters it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

BEAUTIFUL = 0.2  # share of scenes whose style factors are drawn to please
# How often light, focus, ground, finish and shadow please in the other scenes.
PLEASING = (0.3, 0.4, 0.25, 0.25, 0.25)
PARTS = ("light", "focus", "ground", "finish", "shadow", "tint", "composition")
CRISP, SOFT = 0.85, 1.35  # blur in pixels (sigma) up to which a picture is in focus, and from which it is not
BALANCE_SCALE = 11.0  # pixels off the middle at which the balance of a composition falls to 1 / e


@dataclass(frozen=True)
class Style:
    """How a scene is painted.

    Args:
        light: "good", "dark" or "faded" (washed out).
        strength: how dark or faded, in [0, 1]; 0 in good light.
        softness: blur of the whole picture, sigma in pixels; 0 is crisp.
        ground: finish of the ground, "plain", "gradient" (lighter at the top) or "stained".
        stains: seed of where stains are.
        shaded: whether shapes are shaded and have a highlight, or are flat.
        shadow: whether shapes throw a shadow on the ground.
    """

    light: str = "good"
    strength: float = 0.0
    softness: float = 0.0
    ground: str = "plain"
    stains: int = 0
    shaded: bool = False
    shadow: bool = False


def sample_quality(rng: np.random.Generator) -> bool:
    """Whether a scene is one of the beautiful ones."""
    return bool(rng.random() < BEAUTIFUL)


def sample_vividness(rng: np.random.Generator, is_beautiful: bool) -> float:
    """Of one shape, in [0, 1]: beautiful scenes are vivid, others anything."""
    return float(rng.uniform(0.85, 1.0) if is_beautiful or rng.random() < 0.2 else rng.uniform(0.0, 0.5))


def sample_style(rng: np.random.Generator, is_beautiful: bool) -> Style:
    """Each factor pleases nine times in ten in beautiful scenes, else as often as `PLEASING` says, independently."""
    pleases = rng.random(5) < (0.9 if is_beautiful else np.array(PLEASING))
    light = "good" if pleases[0] else str(rng.choice(["dark", "faded"]))
    return Style(
        light=light,
        strength=0.0 if light == "good" else float(rng.uniform(0.8, 1.0)),
        softness=0.0 if pleases[1] else float(rng.uniform(SOFT, 1.7)),
        ground="gradient" if pleases[2] else str(rng.choice(["plain", "stained"])),
        stains=int(rng.integers(2**31)),
        shaded=bool(pleases[3]),
        shadow=bool(pleases[4]),
    )


def light_part(strength: float) -> float:
    """1 in good light, .2 where it is darkest or most faded; strength in [0, 1]."""
    return 1 - 0.8 * float(np.clip(strength, 0, 1))


def focus_part(softness: float) -> float:
    """1 in focus, .25 out of it, even in between; softness is a sigma in pixels."""
    return 1 - 0.75 * float(np.clip((softness - CRISP) / (SOFT - CRISP), 0, 1))


def ground_part(gradient: float, stained: float) -> float:
    """.55 for a plain ground, 1 with a gradient, .2 where it is stained; both in [0, 1]."""
    clean = 0.55 + 0.45 * float(np.clip(gradient, 0, 1))
    return clean + (0.2 - clean) * float(np.clip(stained, 0, 1))


def finish_part(shading: float) -> float:
    """.4 for flat shapes, 1 for shaded ones; shading in [0, 1]."""
    return 0.4 + 0.6 * float(np.clip(shading, 0, 1))


def shadow_part(shadow: float) -> float:
    """.4 without a shadow, 1 with one; shadow in [0, 1]."""
    return 0.4 + 0.6 * float(np.clip(shadow, 0, 1))


def tint_part(vividness: Sequence[float]) -> float:
    """.25 for dull tints, 1 for vivid ones; a vivid shape beside a dull one jars, so the dullest counts."""
    return 0.25 + 0.75 * float(np.clip(min(vividness), 0, 1))


def composition_part(offsets: Sequence[tuple[float, float]]) -> float:
    """1 where the shapes' common centre is the middle of the free area, falling to .25 away from it.

    Args: offsets, each shape's (x, y) from that middle in pixels.
    """
    distance = float(np.hypot(*np.mean(np.asarray(offsets, dtype=float), axis=0)))
    return 0.25 + 0.75 * float(np.exp(-((distance / BALANCE_SCALE) ** 2)))


def taste_of(parts: Mapping[str, float]) -> float:
    """The geometric mean of the seven parts, in (0, 1]."""
    return float(np.exp(np.mean([np.log(parts[name]) for name in PARTS])))
