"""A small random pipeline of every family, and runs on them whose parts moved far enough to be seen in the pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from random_models import make_pipeline

from tests.conftest import PROMPTS, QUICK, TOYBOX
from textcraftor.inference.generate import Sampling
from textcraftor.models.loading import load_pipeline
from textcraftor.models.model import Model
from textcraftor.models.run_record import Base, RunRecord, parts_in
from textcraftor.models.tuning import add_learners

LORA = {"rank": 4, "alpha": 8.0, "target_modules": "auto", "layers": None}
# The configuration of each family, and how every text encoder of it is tuned in the tests: whole, or by LoRA.
FAMILIES = {
    "sd15": {"text_encoder": None},
    "sdxl": {"text_encoder": None, "text_encoder_2": LORA},
    "sd35_medium": {"text_encoder": LORA, "text_encoder_2": None, "text_encoder_3": LORA},
    "flux1_dev": {"text_encoder": LORA, "text_encoder_2": LORA},
    "flux2_klein": {"text_encoder": LORA},
}
SIZE = (64, 96)
WEIGHTS = f"{TOYBOX}/weights"


@dataclass(frozen=True)
class Case:
    """A family's folder and what goes with it."""

    name: str
    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def model(self) -> Model:
        return Model(load_pipeline(str(self.base)))

    def pipeline(self):
        pipe = load_pipeline(str(self.base))
        pipe.set_progress_bar_config(disable=True)
        if self.scheduler == "ddim":
            pipe.scheduler = self.sampling.sampler(Model(pipe)).scheduler
        return pipe

    @property
    def scheduler(self) -> str:
        return "ddim" if self.name.startswith("sd1") or self.name == "sdxl" else "euler"

    @property
    def sampling(self) -> Sampling:
        return Sampling(4, 3.0, *SIZE, scheduler=self.scheduler)

    @cached_property
    def run(self) -> Path:
        """Every text encoder tuned, to condition all steps."""
        return self.make_run("run", FAMILIES[self.name])

    @cached_property
    def late(self) -> Path:
        """The first text encoder tuned, to condition the late steps alone."""
        late = {
            "switch_timestep": 700 if self.scheduler == "ddim" else 900,
            "late": {"tuned": 1.0},
            "early": {"original": 1.0},
        }
        first = dict(list(FAMILIES[self.name].items())[:1])
        return self.make_run("late", first, late)

    @cached_property
    def denoiser(self) -> Path:
        return self.make_run("denoiser", {"denoiser": LORA})

    def kind_of(self, part: str) -> str:
        """What a part is to transformers, or `denoiser`."""
        module = getattr(self.pipeline(), part, None)
        return part if part == "denoiser" else getattr(getattr(module, "config", None), "model_type", "")

    def make_run(self, name: str, tune: dict, schedule: dict | None = None) -> Path:
        folder, model = self.folder / name, self.model()
        if folder.exists():
            return folder
        options = {part: {"lora": lora, "lr": 1e-4, "span": [0, 1]} for part, lora in tune.items()}
        learners = add_learners(model, options, size=SIZE)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for learner in learners:
                for parameter in learner.parameters:
                    parameter += (0.3 if learner.lora else 0.1) * torch.randn(parameter.shape, generator=generator)
        folder.mkdir()
        for learner in learners:
            learner.save(folder)
        weights = {"original" if list(tune) == ["denoiser"] else "tuned": 1.0}
        schedule = schedule or {"switch_timestep": 1000, "late": weights, "early": weights}
        record = RunRecord(
            type(model.pipeline).__name__,
            Base.of({"path": str(self.base), "name": self.name}),
            parts_in(folder),
            schedule,
        )
        record.write(folder)
        return folder


@pytest.fixture(scope="session", params=FAMILIES)
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    make_pipeline(request.param, tiny=True).save_pretrained(folder / "base")
    return Case(request.param, folder)


def small_keys(case: Case) -> list[str]:
    """What every tuning command needs to be quick on a family's small folder, with a real scorer."""
    return [
        f"model={case.name}",
        f"model.path={case.base}",
        *(key for key in QUICK if not key.startswith(("gradient", "training.sampling", "training.ema"))),
        *SCORED,
        *("sampling.height=64", "sampling.width=64", "sampling.steps=2"),
        *("evaluation.prompts=2", "evaluation.seeds=[0]", "watch.seeds=[0]", "tracker=null"),
    ]


# The toybox's scorer, which takes pictures of any model.
SCORED = [
    "rewards=aesthetic",
    f"model.scorers.aesthetic={{clip: '{WEIGHTS}/aesthetic_clip', head: '{WEIGHTS}/aesthetic.safetensors'}}",
]


@pytest.fixture
def prompts(tmp_path) -> Path:
    """A file of prompts to train on and to hold out."""
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join([*PROMPTS, "a blue circle", "a large gray ring", "a green star"]))
    return file
