"""A CLIP whose towers learn which of two pictures of a prompt wins, in PickScore's layout (Kirstain et al. 2023)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig
from peft import LoraConfig
from torch import Tensor, nn
from tqdm.auto import tqdm

from textcraftor.evaluation.score import load_picture
from textcraftor.files.writing import replacing_folder
from textcraftor.models.saving import plain_state
from textcraftor.models.seeds import global_seed, run_rng
from textcraftor.rewards.clip import PickScore
from textcraftor.rewards.learned import CLIP
from textcraftor.training.fitting import FitSettings, fit
from textcraftor.training.preference_fit import Choices

ATTENTION = ("q_proj", "v_proj")  # what adapters change, in both towers


@dataclass(frozen=True)
class Towers:
    """Learns adapters of both towers from choices, by PickScore's loss: the cross entropy of the softmax over the two
    scores, in which a tie is half a win for each.

    Args:
        clip: the CLIP or SigLIP to begin from, a folder or hub id.
        pictures: the prompt and the file of each row.
        config: of the command: `lora`, `training`, `seed`.
        folder: for checkpoints, by which an interrupted training goes on.
    """

    clip: str
    pictures: Sequence[tuple[str, Path]]
    config: DictConfig
    folder: Path
    device: str

    def learn(self, choices: Choices) -> Float[np.ndarray, " pictures"]:
        """The scores of every picture."""
        scorer = self.trained(choices)
        rows = tqdm(range(len(self.pictures)), desc="scoring", unit="picture")
        with torch.no_grad():
            return np.array([self.scores(scorer, [row]).item() for row in rows])

    def save(self, choices: Choices, folder: Path) -> None:
        """Write the CLIP that these choices teach, its adapters merged, with its tokenizer."""
        plain = PickScore.load(self.clip)
        plain.clip.load_state_dict(plain_state(self.trained(choices).clip))
        with replacing_folder(folder / CLIP) as place:
            plain.clip.save_pretrained(place)
            plain.tokenize.tokenizer.save_pretrained(place)

    def trained(self, choices: Choices) -> PickScore:
        """A scorer whose adapters have learned these choices."""
        scorer, settings = adapted(self.clip, self.config), self.config.training
        scorer.to(self.device)

        def loss_of(step: int) -> dict[str, Tensor]:
            drawn = run_rng(self.config.seed, step).choice(len(choices), min(settings.batch_size, len(choices)), False)
            first, second = (self.scores(scorer, side[drawn]) for side in (choices.first, choices.second))
            outcomes = torch.from_numpy(choices.outcomes[drawn]).to(first)
            return {"choice": nn.functional.binary_cross_entropy_with_logits(first - second, outcomes)}

        learning = nn.ParameterList([one for one in scorer.parameters() if one.requires_grad])
        speed = FitSettings(settings.steps, settings.lr, warmup=settings.warmup)
        fit(self.name_of(choices), learning, loss_of, speed, self.folder)
        return scorer

    def name_of(self, choices: Choices) -> str:
        """Tells the training of one fold, and with these settings, from others."""
        settings = (self.clip, self.pictures, self.config.lora, self.config.training, self.config.seed)
        whole = hashlib.sha256(repr(settings).encode())
        for column in (choices.first, choices.second, choices.outcomes):
            whole.update(column.tobytes())
        return f"choices_{whole.hexdigest()[:16]}"

    def scores(self, scorer: PickScore, rows: Sequence[int]) -> Float[Tensor, " rows"]:
        """Of some pictures, each with its prompt."""
        prompts, files = zip(*(self.pictures[row] for row in rows), strict=True)
        pixels = torch.cat([scorer.pixels(load_picture(file)[None].to(self.device)) for file in files])
        return scorer.score_pixels(pixels, prompts)


def adapted(clip: str, config: DictConfig) -> PickScore:
    """A scorer with fresh adapters, which alone learn."""
    scorer = PickScore.load(clip)
    torch.manual_seed(global_seed(config.seed))
    lora = LoraConfig(r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=list(ATTENTION))
    scorer.clip.add_adapter(lora)
    scorer.texts = scorer.encode_text  # not remembered: what encodes them learns
    return scorer
