"""Makes the second world's models: `python scripts/train_world2.py all`, or one stage by name.

Stages, in order: scenes, vae, clip, spelling, clip_2, spelling_2, latents, pipeline (the edition in Stable Diffusion's
layout), sdxl, sd3, pack. Each reads what the stages before it wrote under --work (default .world2), resumes from its
own checkpoint, and is skipped when it is done. Pass --device cuda for a GPU. To train a packed edition on, copy its
folder to --work as `start_pipeline`, `start_sdxl` or `start_sd3`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from editions import sd3, sdxl, stable_diffusion, train_generator
from train_toybox import (
    World,
    encode_latents,
    halve,
    make_scenes,
    run_stages,
    train_clip,
    train_spelling,
    train_vae,
)

from textcraftor.toybox.world2.captions import VOCABULARY, caption, short
from textcraftor.toybox.world2.render import render
from textcraftor.toybox.world2.scenes import Scene, boxes, sample_scene

SCENE_SEED = 2
UNET_STEPS = 15_000
SDXL_STEPS = 8_000
SD3_STEPS = 40_000


def scene(index: int) -> Scene:
    """The training scene with this number: the same on every machine."""
    return sample_scene(np.random.default_rng((SCENE_SEED, index)), word_probability=0.6)


def spelled(drawn: Scene, rng: np.random.Generator) -> str:
    """A descriptive or a short caption with the scene's word."""
    return caption(drawn, "descriptive", rng) if rng.random() < 0.6 else short(drawn, say_word=True)


WORLD = World(
    scene,
    render,
    caption,
    spelled,
    VOCABULARY,
    context=48,
    scenes=100_000,
    clip_captions={"short": 0.2, "descriptive": 0.65, "alt": 0.15},
    unet_captions={"short": 0.45, "descriptive": 0.4, "alt": 0.15},
    boxes=boxes,
)
WEIGHTS = Path("textcraftor/toybox/world2/weights")
PACKED = {
    "pipeline": "pipeline",
    "sdxl": "sdxl",
    "sd3": "sd3",
    "vae": "pipeline/vae",
    "clip": "clip",
}  # folders of --work and of the package


def train_stable_diffusion(work: Path, device: str) -> None:
    """In rounds: in the first one the text encoder learns along, as in latent diffusion's first text-to-image model;
    later it is left alone, so that it does not forget how words are spelt."""
    learning = [] if (work / "start_pipeline").exists() else ["text_encoder"]
    train_generator(work, device, WORLD, "pipeline", stable_diffusion, UNET_STEPS, learning)


def pack(work: Path, device: str) -> None:
    """Whatever has been trained so far, in fp16, into the package."""
    for folder, place in PACKED.items():
        if (work / folder).exists():
            shutil.copytree(work / folder, WEIGHTS / place, dirs_exist_ok=True)
    halve(WEIGHTS)


STAGES: dict[str, Callable[[Path, str], None]] = {
    "scenes": partial(make_scenes, world=WORLD),
    "vae": partial(train_vae, steps=6600, kl_weight=3e-4, cropped=0.8),
    "clip": partial(train_clip, world=WORLD),
    "spelling": partial(train_spelling, world=WORLD, steps=1000),
    "clip_2": partial(train_clip, world=WORLD, name="clip_2", seed=1),
    "spelling_2": partial(train_spelling, world=WORLD, of="clip_2", name="spelling_2"),
    "latents": encode_latents,
    "pipeline": train_stable_diffusion,
    "sdxl": partial(train_generator, world=WORLD, name="sdxl", begin=sdxl, steps=SDXL_STEPS, forgets=0.2),
    "sd3": partial(
        train_generator,
        world=WORLD,
        name="sd3",
        begin=sd3,
        steps=SD3_STEPS,
        learning=["text_encoder_3"],
        forgets=0.2,
    ),
    "pack": pack,
}


if __name__ == "__main__":
    run_stages(STAGES, __doc__, ".world2")
