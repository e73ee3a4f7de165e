"""Which style factors can a text encoder choose? `python scripts/measure_premise.py --work .toybox`.

Every factor gets a scorer of its own, a small network that reads this one factor from pictures. The text encoder is
tuned on it, by the default gradient and by others that reach earlier steps, and the judge says how far the factor went
on held-out prompts. Beside it stands the upper bound of prompting: the same model, given the style's words. A factor
that turns readily is one for rewards to teach; one that early steps decide is one for gradient policies to differ on.
One training seed is a first look; a claim about a factor or a policy takes --seeds 5.
Reads `pipeline` and `scenes.npy` from --work; finished runs are skipped.
"""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from results import new_parser, show
from safetensors.torch import load_file, save_file
from study import NOTE, cell, measures_of_runs, train
from torch import Tensor, nn
from toybox_ratings import scene
from train_toybox import as_images, load_pictures

from textcraftor.data.prompt_files import read_prompts
from textcraftor.inference.generate import Sampling, generate, grid
from textcraftor.models.loading import load_pipeline
from textcraftor.models.model import Model
from textcraftor.rewards.base import Reward
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.toybox.world2.judge import Judge
from textcraftor.toybox.world2.render import style_parts
from textcraftor.toybox.world2.scenes import COLORS
from textcraftor.toybox.world2.styles import PARTS
from textcraftor.training.fitting import FitSettings, fit

POLICIES = {
    "last 2 of 5": (),
    "last 4 of 5": ("gradient.k=4",),
    "full": ("gradient=full",),
    "drtune 5": ("gradient=drtune", "gradient.k=5"),
}
PROMPTS = Path("textcraftor/toybox/prompts/validation.txt")
JUDGE = "textcraftor.toybox.world2.judge.Judge"


class StyleEye(nn.Module):
    """Reads the seven parts of taste from pictures (batch, 3, 64, 64) in [0, 1]: (batch, 7)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        self.layers = nn.Sequential(
            *(
                layer
                for before, after in pairwise(widths)
                for layer in (nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU())
            )
        )
        self.head = nn.Sequential(nn.Linear(128 * 16, 128), nn.SiLU(), nn.Linear(128, len(PARTS)))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images * 2 - 1).flatten(1))


class StyleReward(Reward):
    """One factor as a scorer: what the eye reads of it."""

    def __init__(self, path: str, factor: str) -> None:
        super().__init__()
        self.eye, self.index = StyleEye(), PARTS.index(factor)
        self.eye.load_state_dict(load_file(path))

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.eye(images)[:, self.index]


def train_eye(work: Path, device: str, steps: int = 1500, batch: int = 64) -> None:
    """Teach the eye on rendered scenes, shifted, softened and noisy."""
    pictures = load_pictures(work)
    torch.manual_seed(0)
    eye = StyleEye().to(device)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((5, step))
        indices = np.sort(rng.choice(len(pictures), batch, replace=False))
        truth = [[style_parts(scene(int(index)))[part] for part in PARTS] for index in indices]
        images = as_images(pictures[indices], device) / 2 + 0.5
        images = torch.roll(images, tuple(int(s) for s in rng.integers(-2, 3, 2)), (2, 3))
        images = (images + 0.03 * rng.random() * torch.randn_like(images)).clamp(0, 1)
        return {"mse": nn.functional.mse_loss(eye(images), torch.tensor(truth, device=device))}

    fit("eye", eye, loss_of, FitSettings(steps, learning_rate=2e-3), work)
    save_file(eye.state_dict(), work / "eye.safetensors")


def worded(prompt: str, factor: str) -> str:
    """A prompt that asks for a factor in the world's own words."""
    colors = "|".join(COLORS)
    match factor:
        case "finish" | "tint":
            word = "shaded" if factor == "finish" else "vivid"
            return re.sub(rf"\ban? ((?:small |large )?(?:{colors}) )", rf"a {word} \1", prompt, flags=re.IGNORECASE)
        case "composition":
            return prompt if " and " in prompt else re.sub(rf"((?:{colors}) \w+)", r"\1 in the center", prompt)
        case _:
            suffix = {"light": ", in bright light", "focus": ", sharp", "shadow": " with a shadow"}
            return prompt + suffix.get(factor, " on a gradient ground")


@torch.no_grad()
def judged(model: Model, prompts: list[str], asked: list[str]) -> dict[str, np.ndarray]:
    """The judge's parts of two pictures of each prompt, (1, prompts, 2): nothing is trained."""
    jobs = grid(asked, (0, 1))
    images = generate(model, jobs, ConditioningSchedule.original(), Sampling(15, 1.5, 64, 64), batch_size=32)
    figures = Judge(parts=True)(images, [prompt for prompt in prompts for _ in (0, 1)])
    return {name: np.reshape(values, (1, len(prompts), 2)) for name, values in figures.items()}


def turned(work: Path, factor: str, policy: str, seed: int) -> dict:
    """The summary of a run that was tuned on one factor."""
    reward = {"_target_": "measure_premise.StyleReward", "path": work / "eye.safetensors", "factor": factor}
    return train(
        work / "premise" / f"{factor}_{policy.replace(' ', '_')}_{seed}",
        *(f"model.path={work / 'pipeline'}", f"model.judge._target_={JUDGE}", "+model.judge.parts=true"),
        *("rewards=aesthetic", "~rewards.aesthetic", "+rewards.style.weight=1.0"),
        *(f"+rewards.style.reward.{key}={value}" for key, value in reward.items()),
        *("evaluation.prompts=32", "evaluation.seeds=[0,1]", f"seed={seed}", *POLICIES[policy]),
    )


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--work", type=Path, default=Path(".toybox"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--policies", nargs="*", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--seeds", type=int, default=1, help="of training, for each factor and policy")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    if not (work / "eye.safetensors").exists():
        train_eye(work, arguments.device)
    model, prompts = Model(load_pipeline(str(work / "pipeline"), arguments.device)), read_prompts(PROMPTS)[:32]
    before = judged(model, prompts, prompts)
    rows = []
    for factor in PARTS:
        words = judged(model, prompts, [worded(prompt, factor) for prompt in prompts])[factor]
        cells = [{"mean": np.nanmean(before[factor])}, cell(before[factor], words)]
        for policy in arguments.policies:
            runs = [turned(work, factor, policy, seed) for seed in range(arguments.seeds)]
            untuned, tuned = measures_of_runs(runs)
            cells.append(cell(untuned[f"judge/{factor}"], tuned[f"judge/{factor}"]))
        rows.append([factor, *cells])
    columns = ["factor", ("before", ".3f"), *((name, "+.3f") for name in ("with words", *arguments.policies))]
    show("world2", "premise", columns, rows, arguments.store, seeds=list(range(arguments.seeds)))
    print(f"\nTraining seeds: {arguments.seeds}. {NOTE}")


if __name__ == "__main__":
    main()
