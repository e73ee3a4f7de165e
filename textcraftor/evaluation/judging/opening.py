"""The judge that a command's configuration names, and the answers that it has given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from textcraftor.captioning.understanding import check_understander
from textcraftor.config.making import made
from textcraftor.config.targets import parameters_named
from textcraftor.errors import UsageError
from textcraftor.evaluation.judging.answers import Answers
from textcraftor.evaluation.judging.pairwise import Pairwise

# Keys that answers do not depend on, or that stand in each question itself.
NEUTRAL = ("questions", "question", "answer", "chunks", "show_choices", "figures")
NEUTRAL_OF_MODEL = ("batch_size", "concurrent", "timeout", "attempts", "device", "key_variable", "box_scale")


def judge_of(config: DictConfig) -> Any:
    """The judge, its files read and no model loaded; None where `judge` is null.

    Raises:
        UsageError: no understanding model where the judge asks one, or a file that it cannot use.
    """
    if config.judge is None:
        return None
    if not asks_a_model(config):
        return made(config.judge)
    check_understander(config.understander, "qwen_vl, blip_vqa or endpoint")
    return made(config.judge, understander=partial(made, config.understander))


def asks_a_model(config: DictConfig) -> bool:
    """Whether the judge is given the understanding model."""
    return "understander" in parameters_named(config.judge._target_)


def check_judge(config: DictConfig, folder: Path, prompts: Sequence[str], compares: bool) -> None:
    """Refuse a judge that cannot work, before any model is loaded.

    Args:
        prompts: of the pictures.
        compares: whether there are pictures of two models.
    """
    judge = judge_of(config)
    if judge is None:
        for key in ("answers", "understander"):
            if config[key]:
                raise UsageError(f"{key}= is for a judge: choose judge=vlm or detector, or leave {key} out")
        return
    if isinstance(judge, Pairwise) and not compares:
        raise UsageError(
            "judge.protocol=pairwise compares the pictures of two models: use evaluate with base=, or with what it "
            "compares with the base: tuned, mix, denoiser.path or upsample"
        )
    judge.check(prompts)
    answers_of(config, folder)


def answers_of(config: DictConfig, folder: Path, part: int = 0) -> Answers:
    """The answers so far of a folder, see `Answers`."""
    reuse = [Path(path).expanduser() for path in config.answers]
    return Answers(folder, settings_of(config), part, reuse)


def settings_of(config: DictConfig) -> str:
    """SHA-256 of the settings that answers depend on: the judge's and, if it asks a model, the model's."""
    node: Any = OmegaConf.to_container(config.judge, resolve=True)
    settings: dict[str, Mapping] = {"judge": _without(node, (*NEUTRAL, "device"))}
    if asks_a_model(config):
        settings["model"] = _without(OmegaConf.to_container(config.understander, resolve=True), NEUTRAL_OF_MODEL)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _without(values: Any, left_out: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in left_out}
