"""`textcraftor app`: a page on which to dial tuned encoders in, see the picture change, and take the mix away."""

from __future__ import annotations

import html
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from textcraftor.config.fields import MOST_SEED
from textcraftor.config.rules import is_number
from textcraftor.errors import UsageError
from textcraftor.files.reading import read_yaml, shaped
from textcraftor.files.writing import write_json
from textcraftor.inference.formats import write_record, write_text_encoders, write_webui
from textcraftor.inference.generate import Sampling, generate
from textcraftor.inference.hosting import check_hosting, friendly, serve
from textcraftor.inference.mix import Mix, check_base, denoiser_of
from textcraftor.inference.opening import open_model
from textcraftor.inference.pictures import to_pil
from textcraftor.models.loading import device_of, dtype_of
from textcraftor.models.model import ORIGINAL, Model
from textcraftor.models.run_record import FILE as RUN_FILE
from textcraftor.models.run_record import Base
from textcraftor.rewards.total import RewardSum, check_rewards, load_rewards
from textcraftor.sampling.conditioning import ConditioningSchedule

LONGEST_PROMPT = 2000  # characters
MOST_WEIGHT = 10
KEPT_DOWNLOADS = 4
PICTURES_STAY = (60, 900)  # seconds: how often old pictures are looked for, and how old they get
MOST_STEPS, MOST_GUIDANCE = 100, 30
Scores = dict[str, float]
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
        sampling: of this visitor's pictures, see `sampled`.
        denoiser: which denoiser, as `denoiser_of` reads it.
        steps: that the page's slider for the last steps counts in; the switch is kept as a noise level.
        before: the newest untuned picture, by all that made it.
    """

    model: Model
    sampling: Sampling
    tuned: dict[str, str]
    rewards: RewardSum
    outputs: Path
    denoiser: dict[str, Any]
    base: Base
    steps: int
    before: dict[tuple, tuple] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    @classmethod
    def load(cls, config: DictConfig, outputs: Path) -> Studio:
        tuned, denoiser = names_of(list(config.runs)), denoiser_of(config)
        opened = open_model(config, [Mix(tuned, dict.fromkeys(tuned, 1 / len(tuned)), timestep=0, **denoiser)])
        rewards = load_rewards(config.rewards).to(opened.model.device)
        base, steps = Base.of(config.model), opened.sampling.steps
        studio = cls(opened.model, opened.sampling, tuned, rewards, outputs, denoiser, base, steps)
        studio.rewards.scorers.to(dtype_of(config, "scorer_dtype")[0])
        return studio

    def sampled(self, negative: str, steps: float, guidance: float) -> Studio:
        """The same for pictures that are sampled otherwise.

        Raises:
            UsageError: what a visitor sent cannot be sampled with.
        """
        if not (is_number(steps) and 1 <= steps <= MOST_STEPS):
            raise UsageError(f"steps={steps} must lie between 1 and {MOST_STEPS}")
        if not (is_number(guidance) and 1 <= guidance <= MOST_GUIDANCE):
            raise UsageError(f"guidance={guidance} must lie between 1 and {MOST_GUIDANCE}")
        if len(str(negative)) > LONGEST_PROMPT:
            raise UsageError(f"the negative prompt has {len(negative):,} characters; it may have {LONGEST_PROMPT:,}")
        if negative.strip():
            self.model.check_prompts([negative])
        chosen: dict[str, Any] = {
            "steps": int(steps),
            "guidance_scale": float(guidance),
            "negative_prompt": negative.strip() or None,
        }
        return replace(self, sampling=replace(self.sampling, **chosen))

    def mix(self, weights: list[float], last: int, merge: bool = False) -> Mix:
        given = dict(zip(self.tuned, weights, strict=True))
        return Mix(self.tuned, given, (last, self.steps), merge=merge, **self.denoiser)

    def schedule(self, weights: list[float], last: int) -> ConditioningSchedule:
        """The mix in the last steps. If these are all steps, no timestep is left to the original, despite rounding."""
        schedule = self.mix(weights, last).schedule(self.model, self.timesteps_of)
        if last == self.steps:
            return ConditioningSchedule(schedule.switch_timestep, schedule.late, schedule.late)
        return schedule

    def timesteps_of(self, steps: int) -> Tensor:
        return self.sampling.with_steps(steps).timesteps(self.model)

    @torch.no_grad()
    def picture(self, prompt: str, seed: int, schedule: ConditioningSchedule, mix: str) -> tuple[Image.Image, Scores]:
        """A picture that says in its file how it was made, and its scores."""
        image = generate(self.model, [(prompt, seed)], schedule, self.sampling)
        scores = self.rewards(image.to(self.model.device), [prompt])
        shown, settings = enlarged(image[0]), asdict(self.sampling)
        shown.info = {name: str(one) for name, one in {"prompt": prompt, "seed": seed, "mix": mix, **settings}.items()}
        return shown, {name: score.item() for name, score in scores.items()}

    def pair(
        self, prompt: str, seed: float | str, last: float, *weights: float
    ) -> tuple[Image.Image, Image.Image, str]:
        """Pictures of the original encoder and of the mix from the same noise, and a table of their scores."""
        self.check(prompt, seed, last, weights)
        key = (prompt, int(seed), self.sampling)
        with self.lock:
            if key not in self.before:  # moving a slider leaves it as it is
                original = self.picture(prompt, int(seed), ConditioningSchedule.original(), ORIGINAL)
                self.before.clear()
                self.before[key] = original
            before, old = self.before[key]
            mix, schedule = self.mix(list(weights), int(last)), self.schedule(list(weights), int(last))
            after, new = self.picture(prompt, int(seed), schedule, str(mix))
        return before, after, table({"original": old, "mix": new}, difference=True)

    def strip(
        self, prompt: str, seed: float | str, last: float, *weights: float
    ) -> tuple[list[tuple[Image.Image, str]], str]:
        """Pictures of the mix at increasing shares of its weights, and a table of their scores, a column each."""
        self.check(prompt, seed, last, weights)
        pictures, columns = [], dict[str, Scores]()
        for share in STRIP:
            with self.lock:
                schedule = self.schedule([share * weight for weight in weights], int(last))
                mix = self.mix([share * weight for weight in weights], int(last))
                picture, columns[f"{share:g}"] = self.picture(prompt, int(seed), schedule, str(mix))
            pictures.append((picture, f"{share:g}"))
        return pictures, table(columns)

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
            if int(last) == self.steps:
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
        steps = self.steps
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


def table(columns: Mapping[str, Scores], difference: bool = False) -> str:
    """Scores as an HTML table, a column for each picture; a difference is that of the last picture from the first."""
    heads, (first, *_, last) = [*columns, *(["difference"] if difference else [])], columns.values()
    rows = []
    for name in first:
        cells = [f"{scores[name]:.3f}" for scores in columns.values()]
        cells += [f"{last[name] - first[name]:+.3f}"] if difference else []
        rows.append(f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    top = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    return f'<div style="overflow-x: auto"><table><tr><th>score</th>{top}</tr>{"".join(rows)}</table></div>'


def about(run: str) -> str:
    """What a run was tuned on, and when: its rewards and the day of its record."""
    config, folder = Path(run) / "config.yaml", Path(run).expanduser()
    day = date.fromtimestamp((folder / RUN_FILE).stat().st_mtime).isoformat()
    if not config.exists():
        return day
    rewards = shaped(config, read_yaml(config).get("rewards", {}), {str: object}, "rewards")
    trained = [name for name, part in rewards.items() if isinstance(part, dict) and part.get("weight")]
    return f"{', '.join(trained)[:200]}; {day}" if trained else day


def enlarged(image: Tensor, side: int = 256) -> Image.Image:
    """Small pictures by whole pixels, to be looked at."""
    picture = to_pil(image)
    scale = max(1, side // picture.height)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def page(studio: Studio, prompt: str) -> Any:
    """The Gradio page."""
    import gradio

    steps, sampling = studio.steps, studio.sampling
    with gradio.Blocks(title="TextCraftor", analytics_enabled=False, delete_cache=PICTURES_STAY) as blocks:
        gradio.Markdown("# TextCraftor\nWeights of tuned text encoders; the original one takes the rest to 1.")
        with gradio.Row():
            prompt_box = gradio.Textbox(prompt, label="Prompt", scale=4, max_length=LONGEST_PROMPT)
            seed = gradio.Textbox("0", label="Seed", elem_id="seed", max_length=20)  # browsers round large numbers
            draw = gradio.Button("Random seed", elem_id="draw", min_width=120)
        with gradio.Accordion("Sampling", open=False):
            negative = gradio.Textbox(
                sampling.negative_prompt or "", label="Negative prompt", max_length=LONGEST_PROMPT
            )
            count = gradio.Slider(1, MOST_STEPS, steps, step=1, label="Steps", elem_id="steps")
            guidance = gradio.Slider(1, MOST_GUIDANCE, sampling.guidance_scale, step=0.5, label="Guidance")
        with gradio.Row():
            share = 1 / len(studio.tuned)
            sliders = [
                gradio.Slider(-0.5, 1.5, share, step=0.05, label=name, info=about(run), elem_id=f"weight-{name}")
                for name, run in studio.tuned.items()
            ]
            last = gradio.Slider(1, steps, steps, step=1, label=f"in the last n of {steps} steps", elem_id="last")
        shown: Any = {"format": "png", "buttons": ["download", "fullscreen"], "interactive": False}
        with gradio.Row():
            before = gradio.Image(label="Original", elem_id="before", **shown)
            after = gradio.Image(label="Mix", elem_id="after", **shown)
        scores = gradio.HTML(elem_id="scores")
        with gradio.Accordion("Original and mix in one picture", open=False):
            both = gradio.ImageSlider(label="Original | mix", elem_id="both", **shown)
        with gradio.Row():
            dial = gradio.Button("Strip: the mix dialled in", elem_id="dial")
            take = gradio.Button("The mix as one encoder, to download", elem_id="take")
        strip = gradio.Gallery(
            label="Strip",
            columns=len(STRIP),
            elem_id="strip",
            height=240,
            format="png",
            buttons=["download", "fullscreen"],
        )
        scores_strip = gradio.HTML(elem_id="scores-strip")
        taken = gradio.File(label="The encoders' weights added up", elem_id="taken", visible=False, interactive=False)

        def show(prompt: str, seed: str, negative: str, count: float, guidance: float, *rest: float) -> tuple:
            old, new, html = studio.sampled(negative, count, guidance).pair(prompt, seed_of(seed), *rest)
            return old, new, (old, new), html

        def dialled(prompt: str, seed: str, negative: str, count: float, guidance: float, *rest: float) -> tuple:
            return studio.sampled(negative, count, guidance).strip(prompt, seed_of(seed), *rest)

        inputs = [prompt_box, seed, negative, count, guidance, last, *sliders]
        changed = (seed.change, count.change, guidance.change, last.change, *(slider.change for slider in sliders))
        for event in (prompt_box.submit, negative.submit, *changed, blocks.load):
            shows: Any = {"show_progress": "minimal", "trigger_mode": "always_last"}
            event(friendly(show), inputs, [before, after, both, scores], **shows)
        draw.click(lambda: str(secrets.randbelow(2**32)), None, seed)
        dial.click(friendly(dialled), inputs, [strip, scores_strip])
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
    )
    return "closed"
