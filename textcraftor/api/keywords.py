"""What a Python call says by keywords, as overrides and plain values of a command's configuration.

Values are data: they are set as they are, and no grammar reads them. Objects that only this program has are kept apart,
by the key that they are given for, see `config.objects`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from textcraftor.base_model import configuration_of, model_paths
from textcraftor.config.commands import SCHEMAS
from textcraftor.config.compose import config_dir, groups, package_path
from textcraftor.config.objects import GIVEN, GIVEN_PIPELINE, description, target_of
from textcraftor.config.optim import Gradient
from textcraftor.config.overrides import split
from textcraftor.config.rewards import Scorer, ScorerOrEnsemble
from textcraftor.config.schema import key_of
from textcraftor.config.words import unknown
from textcraftor.errors import UsageError

NAME = re.compile(r"[\w-]+")  # of a key, or of what a user names
REWARD = "a function or module, the name or weight of a scorer of ours, either with a weight after it, or a dictionary"


@dataclass
class Keywords:
    """What keywords mean.

    Args:
        overrides: that choose groups.
        implied: further ones, which a run that goes on does not need.
        values: plain, by dotted key, in the order in which they are to be set; an empty mapping clears a key.
        objects: of this program, by the key that they are given for.
    """

    command: str
    overrides: list[str] = field(default_factory=list)
    implied: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, command: str, keys: tuple[str, ...], keywords: Mapping[str, Any]) -> Keywords:
        """What the keywords of a call mean.

        Args:
            keys: the strings beside them; a group that one of them chooses is added to, not replaced.

        Raises:
            UsageError: a key that the command does not have, or a value that cannot be meant.
        """
        meant, chosen = cls(command), {split(key)[1] for key in keys}
        for key, value in keywords.items():
            if key == "rewards" and isinstance(value, Mapping):
                meant.add_rewards(value, replacing="rewards" not in chosen)
            elif key == "model" and is_pipeline(value):
                meant.add_pipeline(value, choosing="model" not in chosen)
            elif key == "prompts" and isinstance(value, str | list | tuple):
                meant.set_prompts(value)
            elif isinstance(value, str) and key in groups():
                meant.overrides.append(choice(key, value))
            else:
                meant.set(key, value)
        return meant

    def set_prompts(self, prompts: str | Sequence[str]) -> None:
        """Take these texts, or the prompts of a configuration."""
        if not isinstance(prompts, str):
            self.set("prompts.path", None)
            self.set("prompts.texts", prompts)
        elif prompts in groups()["prompts"] and key_of(SCHEMAS[self.command], "prompts.held_out"):
            self.overrides.append(choice("prompts", prompts))
        else:
            raise UsageError(f"prompts={prompts} must be a list of texts, or {{'path': FILE}}; one prompt is prompt=")

    def set(self, key: str, value: Any) -> None:
        """Set a key; a mapping sets the keys below it, or with `_target_` all that it holds; a scorer or a gradient
        policy may be a function or module."""
        known = key_of(SCHEMAS[self.command], key)
        if known is None or not all(NAME.fullmatch(part) for part in key.split(".")):
            raise unknown(self.command, key)
        if callable(value) and known.known in (Scorer, ScorerOrEnsemble, Gradient):
            target = target_of(key, value)
            if target["_target_"] == GIVEN:
                self.objects[key] = value
            value = target
        if not isinstance(value, Mapping) and not OmegaConf.is_dict(value):
            self.values[key] = plain(key, value)
            return
        if "_target_" in value:
            self.values[key] = {}
        for name, one in plain(key, value).items():
            self.set(f"{key}.{name}", one)

    def add_rewards(self, rewards: Mapping[str, Any], replacing: bool) -> None:
        """Take these scorers, and no others where they replace the usual ones."""
        if not rewards:
            raise UsageError("rewards={} names no scorer: give some, as {'red': redness} or {'hpsv2': 1.0}")
        if replacing:
            self.implied.append("~rewards")
        for name, value in rewards.items():
            key = f"rewards.{name}"
            if key_of(SCHEMAS[self.command], key) is None or not NAME.fullmatch(str(name)):
                raise unknown(self.command, key)
            self.add_reward(str(name), key, value)

    def add_reward(self, name: str, key: str, value: Any) -> None:
        """Take one scorer: see `REWARD`."""
        if isinstance(value, Mapping):
            about = {"reward": name, **value}
        elif isinstance(value, tuple) and len(value) == 2:
            about = {"reward": value[0], "weight": value[1]}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            about = {"reward": name, "weight": value}
        else:
            about = {"reward": value}
        scorer = about.pop("reward")
        if isinstance(scorer, str):
            self.implied.append(choice("reward", scorer, f"+reward@{key}"))
        elif isinstance(scorer, Mapping) or callable(scorer):
            about = {"reward": scorer, "weight": 1.0, **about}
        else:
            raise UsageError(f"{key}={scorer!r} must be {REWARD}")
        for part, one in about.items():
            self.set(f"{key}.{part}", one)

    def add_pipeline(self, pipeline: Any, choosing: bool) -> None:
        """Take a loaded pipeline for the model, with the settings of the configuration that is nearest to it."""
        from textcraftor.models.loading import check_given
        from textcraftor.models.run_record import Base

        check_given(pipeline)
        path = str(pipeline.config.get("_name_or_path") or "")
        if choosing:
            known = configuration_of(Base.of({"path": path}), model_paths(config_dir() / "model", package_path))
            self.implied.append(f"model={known or self.like(pipeline)}")
        what = description(pipeline)
        self.set("model", {"path": path, "load": {"_target_": GIVEN_PIPELINE, "what": what}})
        self.objects["model"] = pipeline

    def like(self, pipeline: Any) -> str:
        """The first configuration that is for pipelines of this family."""
        from textcraftor.models.layout import layouts, read_layout
        from textcraftor.models.model import family_of

        family = family_of(*(kind.__name__ for kind in type(pipeline).__mro__))
        return next(
            name
            for name in groups()["model"]
            if name in layouts() and family_of(read_layout(name)["_class_name"]) is family
        )


def choice(group: str, name: str, key: str = "") -> str:
    """The override that chooses a configuration of a group by its name, for a key where it is not the group's own."""
    if name not in groups()[group]:
        raise UsageError(f"{key or group}={name} must be one of {', '.join(groups()[group])}")
    return f"{key or group}={name}"


def is_pipeline(value: Any) -> bool:
    """Whether this is a pipeline of diffusers; text and mappings do not make it import that."""
    if value is None or isinstance(value, str | Mapping | os.PathLike):
        return False
    from diffusers import DiffusionPipeline

    return isinstance(value, DiffusionPipeline)


def plain(key: str, value: Any) -> Any:
    """A value of Python as a configuration holds it: null, a truth value, a number, text, or lists and mappings.

    Raises:
        UsageError: anything else.
    """
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return str(Path(value))
    if isinstance(value, Mapping):
        return {str(name): plain(f"{key}.{name}", one) for name, one in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(f"{key}.{number}", one) for number, one in enumerate(value)]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a number of numpy or torch
        return value.item()
    raise UsageError(
        f"{key}={str(value)[:60]} is {description(value)}: give null, a number, text, a list or a dictionary of them"
    )
