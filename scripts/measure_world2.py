"""How well the second world's judge reads damaged pictures: `python scripts/measure_world2.py`.

Rendered scenes are shifted, blurred, made noisy, compressed as JPEG, and reconstructed by the world's autoencoder.
Printed for each damage: the share of facts and letters that are still read, and the rank correlation of the taste that
is read with the true one.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from measure_toybox import rebuild
from PIL import Image
from results import new_parser, show
from scipy import ndimage, stats

from textcraftor.toybox.world2.captions import descriptive
from textcraftor.toybox.world2.judge import Judge
from textcraftor.toybox.world2.render import render, style_parts, taste_of_scene
from textcraftor.toybox.world2.scenes import Scene, sample_scene
from textcraftor.toybox.world2.styles import PARTS

Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def shifted(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """By up to 3 pixels each way; edges are repeated."""
    dx, dy = rng.integers(-3, 4, 2)
    return np.roll(np.pad(picture, ((4, 4), (4, 4), (0, 0)), mode="edge"), (dy, dx), (0, 1))[4:-4, 4:-4]


def blurred(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return ndimage.gaussian_filter(picture, (0.7, 0.7, 0))


def noisy(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(picture + rng.normal(0, 0.03, picture.shape), 0, 1).astype(np.float32)


def compressed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray((picture * 255).round().clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file), dtype=np.float32) / 255


DAMAGES: dict[str, Damage] = {
    "none": lambda picture, rng: picture,
    "shift of up to 3 px": shifted,
    "blur of .7 px": blurred,
    "noise of .03": noisy,
    "JPEG at quality 50": compressed,
}


def reconstruction(folder: Path) -> Damage:
    """What an autoencoder makes of a picture."""
    vae = AutoencoderKL.from_pretrained(folder)

    def rebuilt(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rebuild(vae, torch.tensor(picture).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()

    return rebuilt


def psnr(scenes: list[Scene], damage: Damage) -> float:
    """Of damaged pictures, in dB, from the mean squared error over all of them."""
    rng = np.random.default_rng(0)
    pictures = [render(scene) for scene in scenes]
    errors = [np.mean((damage(picture, rng) - picture) ** 2) for picture in pictures]
    return float(-10 * np.log10(np.mean(errors)))


def judged(scenes: list[Scene], damage: Damage, seed: int = 0) -> dict[str, np.ndarray]:
    """What the judge says of damaged scenes, beside the true taste and its parts."""
    rng = np.random.default_rng(seed)
    pictures = np.stack([damage(render(scene), rng) for scene in scenes])
    read = Judge(parts=True)(torch.tensor(pictures).permute(0, 3, 1, 2), [descriptive(scene) for scene in scenes])
    truth = [style_parts(scene) | {"taste": taste_of_scene(scene)} for scene in scenes]
    return read | {f"true_{name}": np.array([row[name] for row in truth]) for name in ("taste", *PARTS)}


def figures(read: dict[str, np.ndarray]) -> dict[str, float]:
    """Shares of facts and letters read right, and rank correlations of taste and its parts."""
    facts = np.concatenate([values for name, values in read.items() if name.startswith("fact_")])
    rows = {"facts": float(np.nanmean(facts)), "letters": float(np.nanmean(read["letters"]))}
    for name in ("taste", *PARTS):
        rows[name] = float(stats.spearmanr(read[name], read[f"true_{name}"]).statistic)
    return rows | {"taste bias": float(np.mean(read["taste"] - read["true_taste"]))}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--count", type=int, default=500, help="scenes")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--vae", type=Path, default=Path("textcraftor/toybox/world2/weights/pipeline/vae"))
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    scenes = [sample_scene(rng, "validation") for _ in range(arguments.count)]
    rebuilt = reconstruction(arguments.vae)
    rows = []
    for name, damage in {**DAMAGES, f"VAE reconstruction, {psnr(scenes, rebuilt):.1f} dB": rebuilt}.items():
        began = time.process_time()
        read = figures(judged(scenes, damage))
        rows.append([name, *read.values(), 1000 * (time.process_time() - began) / len(scenes)])
    columns = [
        "damage",
        ("facts", ".3f"),
        ("letters", ".3f"),
        *((f"{part}, rank", ".3f") for part in ("taste", *PARTS)),
    ]
    columns += [("mean error of taste", "+.3f"), ("ms a picture", ".0f")]
    show("world2", "judge", columns, rows, arguments.store)


if __name__ == "__main__":
    main()
