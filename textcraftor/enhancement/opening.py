"""The model of a round: the one to be enhanced, with the adapters of the rounds before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn

from textcraftor.config.making import made
from textcraftor.config.tune import tuned_parts
from textcraftor.enhancement.adapters import PairAdapters, State, rank_of
from textcraftor.evaluation.evaluate import Judge
from textcraftor.files.writing import replacing, replacing_folder
from textcraftor.inference.generate import Sampling
from textcraftor.inference.mix import Mix
from textcraftor.inference.opening import BEGIN, Opened, open_model
from textcraftor.models.loading import dtype_of
from textcraftor.models.model import ORIGINAL, Model
from textcraftor.models.remembering import Remembered
from textcraftor.models.run_record import TUNED, Base, RunRecord, parts_in
from textcraftor.models.tuned import save_parts
from textcraftor.models.tuning import lora_config
from textcraftor.rewards.total import RewardSum, load_rewards
from textcraftor.sampling.conditioning import ConditioningSchedule

STATE = "adapters.safetensors"  # what the rounds so far have learned, exactly


@dataclass
class Session:
    """A model with what looks at its pictures."""

    config: DictConfig
    model: Model
    sampling: Sampling
    schedule: ConditioningSchedule
    rewards: RewardSum
    judge: Judge | None

    @property
    def reader(self) -> str:
        """The name of the text encoders that prompts are read with."""
        return BEGIN if BEGIN in self.model.readers else ORIGINAL

    def networks(self) -> dict[str, tuple[nn.Module, LoraConfig]]:
        """The parts that get adapters, and what LoRA adapts in each."""
        networks: dict[str, tuple[nn.Module, LoraConfig]] = {}
        for part, options in tuned_parts(self.config.tune):
            network: Any = self.model.denoiser if part == "denoiser" else self.model.encoders(self.reader)[part]
            lora = lora_config(self.model, part, options.lora)
            assert lora is not None
            networks[part] = network, lora
        return networks


@contextlib.contextmanager
def session_of(config: DictConfig, states: Mapping[str, State], learns: bool = False) -> Iterator[Session]:
    """Load the model, with adapters attached.

    Args:
        states: of each part, what the rounds so far have learned.
        learns: text encoders that get adapters are read anew for each text, as training needs it.
    """
    opened = opened_with(config, {})
    model = opened.model
    rewards = load_rewards(config.rewards).to(model.device)
    rewards.scorers.to(dtype_of(config, "scorer_dtype")[0])
    session = Session(config, model, opened.sampling, opened.schedules[0], rewards, made(config.model.judge))
    with contextlib.ExitStack() as stack:
        for part, (network, _) in session.networks().items():
            if part in states:
                stack.enter_context(PairAdapters.of(network, states[part]).attached())
            reader = model.readers[session.reader]
            if learns and part != "denoiser" and isinstance(getattr(reader, part), Remembered):
                setattr(reader, part, network)
        yield session


def opened_with(config: DictConfig, tune: Mapping[str, Any]) -> Opened:
    """The model to be enhanced, with new adapters of the parts that `tune` names."""
    begun = Mix(dict(zip([BEGIN], config.tuned.values(), strict=False)))
    chosen = OmegaConf.masked_copy(config, [str(key) for key in config if key != "tune"])
    return open_model(OmegaConf.merge(chosen, {"tune": tune}), [begun])  # type: ignore[arg-type]


def save_run(config: DictConfig, states: Mapping[str, State], folder: Path) -> None:
    """Write what was learned as an ordinary run: adapters of each part, and whatever else the run that it began from
    tuned."""
    tune = {}
    for part, options in tuned_parts(config.tune):
        rank = rank_of(states[part])
        tune[part] = {**options, "lora": {**options.lora, "rank": rank, "alpha": float(rank)}}
    opened = opened_with(config, tune)
    model, learners = opened.model, opened.learners
    for learner in learners:
        for name, parameter in learner.module.named_parameters():
            if "lora_" in name:
                parameter.data.copy_(states[learner.part][name.replace(".default.", ".")])
    with replacing_folder(folder) as partial:
        save_parts(model, learners, config.tuned.values(), partial)
        encodes = any(learner.part != "denoiser" for learner in learners)
        schedule = opened.schedules[0].renamed({BEGIN: TUNED} | ({ORIGINAL: TUNED} if encodes else {}))
        parents = [{"run": str(run), "weight": 1.0} for run in config.tuned.values()]
        pipeline, base = type(model.pipeline).__name__, Base.of(config.model)
        RunRecord(pipeline, base, parts_in(partial), schedule.to_dict(), parents).write(partial)
        write_states(states, partial)


def write_states(states: Mapping[str, State], folder: Path) -> None:
    """Every part's adapters in one file."""
    tensors = {f"{part}/{name}": one.contiguous() for part, state in states.items() for name, one in state.items()}
    with replacing(folder / STATE) as partial:
        save_file(tensors, partial)


def read_states(folder: Path) -> dict[str, State]:
    """What `write_states` wrote; nothing where there is none."""
    states: dict[str, State] = {}
    if (folder / STATE).exists():
        for key, tensor in load_file(folder / STATE).items():
            part, _, name = key.partition("/")
            states.setdefault(part, {})[name] = tensor
    return states
