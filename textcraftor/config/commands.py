"""Every command's keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textcraftor.config.data import Captioned, Captioner, Captions, File, NewCaptioner, Pictures, Prompts, Suite
from textcraftor.config.fields import (
    Group,
    by_name,
    flag,
    group,
    groups_by_name,
    opens,
    path_list,
    paths_by_name,
    seed_list,
    typed_path,
    typed_text,
    whole,
    word,
    word_list,
)
from textcraftor.config.mixing import Denoiser, is_list_of_weights, is_weight
from textcraftor.config.model import Model
from textcraftor.config.optim import Gradient, Optim
from textcraftor.config.rewards import Reward
from textcraftor.config.sampling import Conditioning, RewardConditioning, Sampling, Switch
from textcraftor.config.training import Denoising, Evaluation, Memory, RewardTraining, Stage, Training, Watch
from textcraftor.config.tune import Tune


@dataclass
class Command(Group):
    """What every command has."""

    run_dir: str = typed_path()
    """The folder that it writes."""


@dataclass
class Named(Command):
    """What commands that write a folder have."""

    name: str = typed_text()
    """Of the folder, within the command's own."""


@dataclass
class Computing(Named):
    """What commands that compute have."""

    device: str = word()
    """cpu, cuda, cuda:1, or auto: a GPU where there is one."""


@dataclass
class Tuning(Computing):
    """What train and tune-captions have in common."""

    model: Model = group()
    """What is tuned."""
    optim: dict[str, Any] = opens(Optim)
    """The optimiser."""
    tune: Tune = group()
    """What learns."""
    negative_prompt: str = typed_text()
    """Of the unconditional branch of guidance."""
    sampling: Sampling = group()
    """How pictures are sampled."""
    rewards: dict[str, Reward | None] = groups_by_name("reward and weight")
    """The scorers of the weighted sum, by name; null takes one out."""
    prompts: Prompts = group()
    """What is trained on, and what is held out."""
    data: Pictures = group()
    """Captioned pictures to learn from."""
    captions: Captions = group()
    """Which caption of a picture is learned from."""
    resume: str | None = typed_path()
    """The folder of a run to go on with."""
    dry_run: bool = flag()
    """Forecast memory and time, write nothing."""
    seed: int = whole(least=0)
    """Of all that is drawn."""
    dtype: str = word()
    """Of the frozen parts: float32, bfloat16, float16 or auto; what learns is always float32."""
    scorer_dtype: str = word()
    """Of the scorers; bfloat16 halves their memory."""
    compile: bool = flag()
    """torch.compile of the denoiser, after a check of its gradients."""
    tracker: str | None = word()
    """Any that accelerate knows, as wandb; null: none."""
    normalize_rewards: bool = flag()
    """Standardise every score, so that weights compare scorers of any scale."""
    tuned: dict[str, str] = paths_by_name()
    """Begin with what that run tuned, its text encoder frozen."""
    stop_on: list[str] = word_list()
    """Alarms that end the run, of watch.alarms."""
    conditioning: Conditioning = group()
    """Which steps the tuned text encoder conditions."""
    training: Training = group()
    """How long training goes on."""
    memory: Memory = group()
    """What may be kept for the backward pass."""
    watch: Watch = group()
    """Held-out prompts on the way."""
    evaluation: Evaluation = group()
    """Held-out prompts before and after."""


@dataclass
class Train(Tuning):
    """textcraftor train."""

    gradient: dict[str, Any] = opens(Gradient)
    """Where in the chain the gradient flows."""
    conditioning: RewardConditioning = group()
    """Which steps the tuned text encoder conditions."""
    training: RewardTraining = group()
    """How long training goes on."""


@dataclass
class TuneCaptions(Tuning):
    """textcraftor tune-captions."""

    denoising: Denoising = group()
    """The loss."""


@dataclass
class Fetch(Train):
    """textcraftor fetch: any keys of train."""

    suite: Suite | None = None
    """Prompts to evaluate with."""


@dataclass
class TrainCaptioner(Computing):
    """textcraftor train-captioner."""

    data: Captioned = group()
    """Captioned pictures to learn from."""
    captioner: NewCaptioner = group()
    """The networks that it is made of."""
    stages: dict[str, Stage] = groups_by_name("start, kind, steps and lr")
    """Each a folder of the run: a base captioner, and fine-tunes of it."""
    batch_size: int = whole(least=1)
    """Pictures a step, all processes together."""
    warmup: int = whole(least=0)
    """Steps in which the learning rate rises."""
    seed: int = whole(least=0)
    """Of all that is drawn."""


@dataclass
class Recaption(Computing):
    """textcraftor recaption."""

    captioner: dict[str, Any] = opens(Captioner)
    """What describes pictures."""
    data: File = group()
    """A folder of pictures."""
    style: str = word()
    """The kind of caption: descriptive, short, or another."""
    batch_size: int = whole(least=1)
    """Pictures at a time."""


@dataclass
class Letters(Named):
    """textcraftor letters."""

    model: Model = group()
    """What writes, and how."""
    count: int = whole(least=1)
    """How many pictures."""
    seed: int = whole(least=0)
    """Of all that is drawn."""


@dataclass
class Upsample(Computing):
    """textcraftor upsample."""

    model: Model = group()
    """What rewrites."""
    prompts: File = group()
    """A text file, one prompt a line."""


@dataclass
class Mixing(Computing):
    """What commands that mix tuned encoders have."""

    model: Model = group()
    """The base model."""
    tuned: dict[str, str] = paths_by_name()
    """Run folders by names that mix uses."""
    mix: dict[str, Any] = by_name("a finite number, or rest", is_weight)
    """Weights by name; mix.original takes the rest to 1 unless it is given; negative weights extrapolate."""
    switch: Switch = group()
    """The noise levels from which on the mix holds."""
    merge: bool = flag()
    """Add up the encoders' weights instead of their embeddings: one encoder."""
    denoiser: Denoiser = group()
    """Which denoiser stands beside the mix."""


@dataclass
class Export(Mixing):
    """textcraftor export."""

    formats: list[str] | None = word_list()
    """Of diffusers, webui, kohya, pipeline; null: all that apply but the pipeline, which is a whole model."""
    push_to_hub: str | None = typed_text()
    """owner/name of a repository to upload the folder to."""


@dataclass
class Picturing(Mixing):
    """What commands that make pictures have."""

    negative_prompt: str = typed_text()
    """Of the unconditional branch of guidance."""
    sampling: Sampling = group()
    """How pictures are sampled."""
    upsample: bool = flag()
    """model.upsampler rewrites each prompt first, saying more."""
    seeds: list[int] = seed_list()
    """Of the noise, for each prompt."""
    batch_size: int = whole(least=1)
    """Pictures at a time."""
    dtype: str = word()
    """float32, bfloat16, float16 or auto."""
    prompts: File = group()
    """A file of prompts."""


@dataclass
class Generate(Picturing):
    """textcraftor generate."""

    prompt: str | None = typed_text()
    """One prompt, taken literally."""
    grid: dict[str, Any] = by_name("a list of weights, as {key}=[0,.5,1]", is_list_of_weights)
    """A column of pictures for each weight of the mix; two names: one downwards, one across."""


@dataclass
class Evaluate(Picturing):
    """textcraftor evaluate."""

    rewards: dict[str, Reward | None] = groups_by_name("reward and weight")
    """What judges the pictures, by name."""
    suite: Suite = group()
    """Prompts to evaluate with."""
    limit: int | None = whole(least=1)
    """The first so many prompts of each of the suite's categories."""
    base: str | None = typed_path()
    """The folder of another evaluation to compare with; null: the untuned model, evaluated in base/."""
    shard: str | None = word()
    """0/4 makes the first quarter of the pictures; the last shard to end writes the report."""
    scorer_dtype: str = word()
    """Of the scorers; bfloat16 halves their memory."""


@dataclass
class Score(Computing):
    """textcraftor score."""

    model: Model = group()
    """Whose scorers are used."""
    rewards: dict[str, Reward | None] = groups_by_name("reward and weight")
    """What judges the pictures, by name."""
    images: str | None = typed_path()
    """A folder of pictures."""
    prompts: File = group()
    """One a line in the order of file names, or JSON lines {"image":, "prompt":}; null: as the PNGs say."""
    batch_size: int = whole(least=1)
    """Pictures at a time."""
    scorer_dtype: str = word()
    """Of the scorers; bfloat16 halves their memory."""


@dataclass
class Compare(Named):
    """textcraftor compare."""

    runs: list[str] = path_list()
    """Folders of finished runs; on the command line simply their paths."""
    x: str = word()
    """Of the picture: a measure's change, or held_out, seconds, gb, steps."""
    y: str = word()
    """The same, upwards."""


@dataclass
class App(Command):
    """textcraftor app."""

    device: str = word()
    """cpu, cuda, cuda:1, or auto: a GPU where there is one."""
    model: Model = group()
    """The base model."""
    runs: list[str] = path_list()
    """Folders of finished runs; on the command line simply their paths."""
    negative_prompt: str = typed_text()
    """Of the unconditional branch of guidance."""
    sampling: Sampling = group()
    """How pictures are sampled."""
    rewards: dict[str, Reward | None] = groups_by_name("reward and weight")
    """What the page says of a picture, by name."""
    denoiser: Denoiser = group()
    """Which denoiser stands beside the mix."""
    host: str = word()
    """0.0.0.0 lets others on the network in: anyone who reaches the page can use it."""
    port: int = whole(least=0, most=65535)
    """0 takes a free one."""
    dtype: str = word()
    """float32, bfloat16, float16 or auto."""
    scorer_dtype: str = word()
    """Of the scorers; bfloat16 halves their memory."""


SCHEMAS: dict[str, type[Command]] = {
    "train": Train,
    "tune-captions": TuneCaptions,
    "train-captioner": TrainCaptioner,
    "recaption": Recaption,
    "letters": Letters,
    "upsample": Upsample,
    "generate": Generate,
    "evaluate": Evaluate,
    "export": Export,
    "score": Score,
    "compare": Compare,
    "app": App,
    "fetch": Fetch,
}
