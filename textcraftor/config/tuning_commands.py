"""The keys of the commands that tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textcraftor.config.command import Computing
from textcraftor.config.data import Captions, Pictures, Prompts, Suite, Understander
from textcraftor.config.fields import (
    choices_by_name,
    flag,
    group,
    groups_by_name,
    one_seed,
    opens,
    paths_by_name,
    typed_path,
    typed_text,
    word,
    word_list,
)
from textcraftor.config.judging import Judge
from textcraftor.config.model import Model
from textcraftor.config.optim import Gradient, Optim
from textcraftor.config.rewards import Reward
from textcraftor.config.sampling import Conditioning, RewardConditioning, Sampling
from textcraftor.config.training import Denoising, Evaluation, Memory, Processes, RewardTraining, Training, Watch
from textcraftor.config.tune import Tune


@dataclass
class Tuning(Computing):
    """What train and tune-captions have in common."""

    model: Model = group()
    """What is tuned."""
    optim: dict[str, Any] = opens(Optim)
    """The optimiser."""
    tune: Tune = group()
    """What learns."""
    negative_prompt: str | None = typed_text()
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
    seed: int = one_seed()
    """Of all that is drawn."""
    dtype: str = word()
    """Of the frozen parts: float32, bfloat16, float16 or auto; what learns is always float32."""
    quantize: dict[str, str] = choices_by_name(("nf4", "int8"))
    """Frozen parts in fewer bits, by bitsandbytes: text_encoder_3, denoiser ..."""
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
    any_base: bool = flag()
    """Begin with what was tuned on another model."""
    stop_on: list[str] = word_list()
    """Alarms that end the run, of watch.alarms."""
    conditioning: Conditioning = group()
    """Which steps the tuned text encoder conditions."""
    training: Training = group()
    """How long training goes on."""
    memory: Memory = group()
    """What may be kept for the backward pass."""
    processes: Processes = group()
    """Those of one launch."""
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
    judge: dict[str, Any] | None = opens(Judge)
    """What judges the pictures of an evaluation."""
    understander: dict[str, Any] | None = opens(Understander)
    """The model that judge=vlm asks."""
