"""A linear head on frozen embeddings of pictures, in the layout of LAION's first aesthetic predictor."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from textcraftor.evaluation.picture_sets import PictureSet
from textcraftor.evaluation.score import load_picture
from textcraftor.files.writing import replacing
from textcraftor.rewards.aesthetic import Aesthetic, load_tower
from textcraftor.rewards.learned import HEAD
from textcraftor.training.preference_fit import Choices, fit_linear

LEAST_SPREAD = 1e-12  # of scores, so that a head which tells nothing apart is no division by zero


@dataclass(frozen=True)
class Head:
    """Learns a head from choices.

    Args:
        features: of every picture.
        seed: of the folds by which the penalty is chosen.
    """

    features: Float[np.ndarray, "pictures features"]
    seed: int

    def learn(self, choices: Choices) -> Float[np.ndarray, " pictures"]:
        """The scores of every picture."""
        return self.features @ fit_linear(self.features, choices, self.seed)

    def save(self, choices: Choices, folder: Path) -> None:
        """Write the head that these choices teach, in a scale in which the scores of all pictures have mean 0 and
        standard deviation 1."""
        weights = fit_linear(self.features, choices, self.seed)
        scores = self.features @ weights
        spread = max(float(scores.std()), LEAST_SPREAD)
        bias = torch.tensor([-scores.mean() / spread])
        with replacing(folder / HEAD) as place:
            save_file({"weight": torch.from_numpy(weights / spread).float()[None], "bias": bias.float()}, place)


def features_of(
    clip: str, sets: Mapping[str, PictureSet], kept: Path, device: str
) -> Float[np.ndarray, "pictures features"]:
    """Embeddings of norm 1 of every picture, in the order of `Preferences.pictures`.

    Args:
        clip: a CLIP or SigLIP, a folder or hub id.
        kept: the folder in which a later training finds those of the same pictures and weights.
    """
    eyes = Aesthetic(load_tower(clip), nn.Identity())
    weights = digest_of(eyes)
    eyes.to(device)
    rows = []
    for name, own in sets.items():
        file = kept / f"{hashlib.sha256(f'{weights} {own.fingerprint}'.encode()).hexdigest()}.safetensors"
        if not file.exists():
            seen = embedded(eyes, own, name, device)
            with replacing(file) as place:
                save_file({"features": seen}, place)
        rows.append(load_file(file)["features"])
    return torch.cat(rows).double().numpy()


def digest_of(module: nn.Module) -> str:
    """SHA-256 of a module's weights."""
    whole = hashlib.sha256()
    for name, one in sorted(module.state_dict().items()):
        whole.update(f"{name} {tuple(one.shape)}".encode())
        whole.update(one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return whole.hexdigest()


@torch.no_grad()
def embedded(eyes: Aesthetic, own: PictureSet, name: str, device: str) -> Float[Tensor, "pictures features"]:
    """Embeddings of a set's pictures, which may differ in size, by prompt and seed."""
    files = [file for _, file in sorted(own.files.items())]
    rows = [
        eyes.embed_pixels(eyes.pixels(load_picture(file)[None].to(device)))
        for file in tqdm(files, desc=f"embedding {name}", unit="picture")
    ]
    return torch.cat(rows).float().cpu().contiguous()
