"""`textcraftor app`: a page on which to dial tuned encoders in, see the picture change, and take the mix away."""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from textcraftor.config.fields import MOST_SEED
from textcraftor.config.rules import is_number
from textcraftor.errors import UsageError
from textcraftor.files.writing import write_json
from textcraftor.inference.formats import write_record, write_text_encoders, write_webui
from textcraftor.inference.generate import Sampling, generate
from textcraftor.inference.hosting import check_hosting, friendly, serve
from textcraftor.inference.mix import Mix, check_base, denoiser_of
from textcraftor.inference.opening import open_model
from textcraftor.inference.pictures import to_pil
from textcraftor.models.loading import device_of, dtype_of
from textcraftor.models.model import ORIGINAL, Model
from textcraftor.models.run_record import Base
from textcraftor.rewards.total import RewardSum, check_rewards, load_rewards
from textcraftor.sampling.conditioning import ConditioningSchedule

LONGEST_PROMPT = 2000  # characters
MOST_WEIGHT = 10
KEPT_DOWNLOADS = 4
PICTURES_STAY = (60, 900)  # seconds: how often old pictures are looked for, and how old they get
STRIP = (0.0, 0.25, 0.5, 0.75, 1.0)  # weights that the strip shows


def names_of(runs: list[str]) -> dict[str, str]:
    """A short name for each run's folder."""
    names = [Path(run).resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = ["_".join(Path(run).resolve().parts[-2:]) for run in runs]
    return dict(zip(names, runs, strict=True))


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot work before any model is loaded."""
    if not config.runs:
        raise UsageError("name at least one finished run: textcraftor app runs/a runs/b")
    tuned = names_of(list(config.runs))
    Mix(tuned, {name: 1 / len(tuned) for name in tuned}, timestep=0, **denoiser_of(config))
    check_base(tuned, config)
    check_rewards(config)
    Sampling(**config.sampling)
    device_of(config.device)
    check_hosting(config.host, config.port)


@dataclass
class Studio:
    """A model with tuned encoders, and the scorers that look at its pictures; visitors share it one at a time.

    Args:
        tuned: run folders by the names of the page's sliders.
        denoiser: which denoiser, as `denoiser_of` reads it.
    """

    model: Model
    sampling: Sampling
    tuned: dict[str, str]
    rewards: RewardSum
    outputs: Path
    denoiser: dict[str, Any]
    base: Base
    before: tuple = ((), ())
    lock: Any = field(default_factory=threading.Lock)

    @classmethod
    def load(cls, config: DictConfig, outputs: Path) -> Studio:
        tuned, denoiser = names_of(list(config.runs)), denoiser_of(config)
        opened = open_model(config, [Mix(tuned, dict.fromkeys(tuned, 1 / len(tuned)), timestep=0, **denoiser)])
        rewards = load_rewards(config.rewards).to(opened.model.device)
        studio = cls(opened.model, opened.sampling, tuned, rewards, outputs, denoiser, Base.of(config.model))
        studio.rewards.scorers.to(dtype_of(config, "scorer_dtype")[0])
        return studio

    def mix(self, weights: list[float], last: int, merge: bool = False) -> Mix:
        given = dict(zip(self.tuned, weights, strict=True))
        return Mix(self.tuned, given, (last, self.sampling.steps), merge=merge, **self.denoiser)

    def schedule(self, weights: list[float], last: int) -> ConditioningSchedule:
        """The mix in the last steps; in all of them it is the mix everywhere, whatever rounding a sampler does."""
        found = self.mix(weights, last).schedule(self.model, self.timesteps_of)
        return (
            ConditioningSchedule(found.switch_timestep, found.late, found.late)
            if last == self.sampling.steps
            else found
        )

    def timesteps_of(self, steps: int) -> Tensor:
        return self.sampling.with_steps(steps).timesteps(self.model)

    def picture(self, prompt: str, seed: int, schedule: ConditioningSchedule) -> tuple[Image.Image, str]:
        """A picture, and what the scorers say of it."""
        image = generate(self.model, [(prompt, seed)], schedule, self.sampling)
        return enlarged(image[0]), self.scores(image, prompt)

    @torch.no_grad()
    def scores(self, image: Tensor, prompt: str) -> str:
        said = self.rewards(image.to(self.model.device), [prompt])
        return "  ".join(f"{name} {score.item():.3f}" for name, score in said.items())

    def pair(
        self, prompt: str, seed: float | str, last: float, *weights: float
    ) -> tuple[Image.Image, str, Image.Image, str]:
        """Before and after: the original encoder and the mix, from the same noise."""
        self.check(prompt, seed, last, weights)
        with self.lock:
            if self.before[0] != (prompt, int(seed)):  # moving a slider leaves it as it is
                self.before = (prompt, int(seed)), self.picture(prompt, int(seed), ConditioningSchedule.original())
            return *self.before[1], *self.picture(prompt, int(seed), self.schedule(list(weights), int(last)))

    def strip(
        self, prompt: str, seed: float | str, last: float, *weights: float
    ) -> tuple[list[tuple[Image.Image, str]], str]:
        """The mix dialled in from nothing to all of it, and what the scorers say, a line a picture."""
        self.check(prompt, seed, last, weights)
        found, lines = [], []
        for share in STRIP:
            with self.lock:
                schedule = self.schedule([share * weight for weight in weights], int(last))
                picture, scores = self.picture(prompt, int(seed), schedule)
            found.append((picture, f"{share:g}"))
            lines.append(f"{share:g}: {scores}")
        return found, "\n".join(lines)

    def download(self, last: float, *weights: float) -> str:
        """The mix as one encoder, its weights added up, in a zip with how it was made; returns the file, of which the
        newest few are kept."""
        self.check(None, 0, last, weights)
        with self.lock, tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "mix"
            mix = self.mix(list(weights), int(last), merge=True)
            schedule = mix.schedule(self.model, self.timesteps_of)
            (encoder,) = schedule.late
            write_text_encoders(self.model, encoder, folder)
            write_webui(self.model, mix, encoder, folder)
            conditioning = ConditioningSchedule(schedule.switch_timestep, {"tuned": 1.0}, {"original": 1.0})
            if int(last) == self.sampling.steps:
                conditioning = ConditioningSchedule(schedule.switch_timestep, {"tuned": 1.0}, {"tuned": 1.0})
            write_record(self.model, self.base, conditioning, [], folder)
            write_json(folder / "mix.json", {"weights": mix.all_weights, "tuned": list(self.tuned)})
            if encoder not in (ORIGINAL, *self.tuned):
                del self.model.readers[encoder]
            packed = shutil.make_archive(str(self.outputs / f"mix_{secrets.token_hex(4)}"), "zip", scratch)
            kept = sorted(self.outputs.glob("mix_*.zip"), key=lambda file: file.stat().st_mtime)
            for old in kept[:-KEPT_DOWNLOADS]:
                old.unlink()
            return packed

    def check(self, prompt: str | None, seed: float | str, last: float, weights: Sequence[float]) -> None:
        """Refuse what a page, or whoever speaks to it, may send but cannot mean.

        Args:
            prompt: None where none is needed.
        """
        steps = self.sampling.steps
        if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
            raise UsageError("the prompt is empty: say what the picture shall show")
        if prompt is not None and len(prompt) > LONGEST_PROMPT:
            raise UsageError(f"the prompt has {len(prompt):,} characters; it may have {LONGEST_PROMPT:,}")
        whole = isinstance(seed, int | float) and 0 <= seed <= MOST_SEED and is_number(seed) and seed == int(seed)
        if not whole:
            raise UsageError(f"seed={str(seed)[:40]} must be a whole number from 0 on, at most {MOST_SEED}")
        if not (is_number(last) and 1 <= last <= steps):
            raise UsageError(f"the mix in the last {last} steps: must lie between 1 and {steps}")
        for name, weight in zip(self.tuned, weights, strict=True):
            if not (is_number(weight) and abs(weight) <= MOST_WEIGHT):
                raise UsageError(f"{name}={weight} must be a number between -{MOST_WEIGHT} and {MOST_WEIGHT}")
        if prompt is not None:
            self.model.check_prompts([prompt])


def seed_of(text: str) -> int | str:
    """The seed that a visitor typed; what is no whole number stays as it is, to be refused."""
    return int(text) if re.fullmatch(r"\s*\d{1,20}\s*", str(text)) else text


def enlarged(image: Tensor, side: int = 256) -> Image.Image:
    """Small pictures by whole pixels, to be looked at."""
    picture = to_pil(image)
    scale = max(1, side // picture.height)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def page(studio: Studio, prompt: str) -> Any:
    """The Gradio page."""
    import gradio

    steps = studio.sampling.steps
    with gradio.Blocks(title="TextCraftor", analytics_enabled=False, delete_cache=PICTURES_STAY) as blocks:
        gradio.Markdown("# TextCraftor\nWeights of tuned text encoders; the original one takes the rest to 1.")
        with gradio.Row():
            said = gradio.Textbox(prompt, label="Prompt", scale=4, max_length=LONGEST_PROMPT)
            seed = gradio.Textbox("0", label="Seed", elem_id="seed", max_length=20)  # browsers round large numbers
        with gradio.Row():
            sliders = [
                gradio.Slider(-0.5, 1.5, 1 / len(studio.tuned), step=0.05, label=name, elem_id=f"weight-{name}")
                for name in studio.tuned
            ]
            last = gradio.Slider(1, steps, steps, step=1, label=f"in the last n of {steps} steps", elem_id="last")
        with gradio.Row():
            shown: Any = {"format": "png", "buttons": ["download", "fullscreen"], "interactive": False}
            before = gradio.Image(label="Original", elem_id="before", **shown)
            after = gradio.Image(label="Mix", elem_id="after", **shown)
        with gradio.Row():
            scores_before = gradio.Textbox(label="Scores", elem_id="scores-before", interactive=False)
            scores_after = gradio.Textbox(label="Scores", elem_id="scores-after", interactive=False)
        with gradio.Row():
            dial = gradio.Button("Strip: the mix dialled in", elem_id="dial")
            take = gradio.Button("The mix as one encoder, to download", elem_id="take")
        strip = gradio.Gallery(label="Strip", columns=len(STRIP), elem_id="strip", height=240, format="png", buttons=[])
        scores_strip = gradio.Textbox(label="Scores", elem_id="scores-strip", lines=len(STRIP), interactive=False)
        taken = gradio.File(label="The encoders' weights added up", elem_id="taken", visible=False, interactive=False)
        inputs, outputs = [said, seed, last, *sliders], [before, scores_before, after, scores_after]
        show = friendly(lambda said, seed, *rest: studio.pair(said, seed_of(seed), *rest))
        for event in (said.submit, seed.submit, last.change, *(slider.change for slider in sliders), blocks.load):
            event(show, inputs, outputs, show_progress="minimal", trigger_mode="always_last")
        dial.click(
            friendly(lambda said, seed, *rest: studio.strip(said, seed_of(seed), *rest)), inputs, [strip, scores_strip]
        )
        download = friendly(lambda *values: gradio.File(studio.download(*values), visible=True))
        take.click(download, [last, *sliders], taken)
    return blocks


def run(config: DictConfig, folder: Path) -> str:
    """Load everything and serve the page until it is interrupted."""
    check(config, folder)
    serve(
        lambda outputs: page(Studio.load(config, outputs), "a red circle and a blue star"),
        config.host,
        config.port,
        ready="loading; then",
    )
    return "closed"
