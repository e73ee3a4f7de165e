"""What keywords mean: values are data, objects leave a configuration that can be read back, mistakes are one line."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

import hydra
import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import textcraftor
from tests.config.test_overrides import TEXTS
from tests.conftest import WEIGHTS
from textcraftor.api import calling
from textcraftor.config.making import made
from textcraftor.config.objects import GIVEN, GIVEN_PIPELINE
from textcraftor.errors import UsageError
from textcraftor.rewards.total import load_rewards
from textcraftor.sampling.gradients import full

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def redness(images, prompts):
    """A scorer that can be imported."""
    return images[:, 0].mean((1, 2))


class Redness(torch.nn.Module):
    """The same as a module."""

    def forward(self, images, prompts):
        return redness(images, prompts)


def meant(command: str, *keys: str, **values: Any) -> DictConfig:
    """The configuration that a call means."""
    with calling.meaning(command, keys, values) as config:
        return config


def test_values_are_data_and_no_grammar_reads_them(tmp_path):
    """Also after the configuration was written and read again."""
    config = meant("train", prompts=TEXTS, negative_prompt="${now:%Y}", run_dir=tmp_path / "a, b=${x}", name="true")
    again = yaml.safe_load(OmegaConf.to_yaml(config, resolve=True))
    assert again["prompts"]["texts"] == TEXTS
    assert (again["negative_prompt"], again["name"]) == ("${now:%Y}", "true")
    assert config.run_dir == str(tmp_path / "a, b=${x}")


def test_keywords_say_what_overrides_say(configure):
    overrides = [
        "model=sdxl",
        "tune=denoiser_lora",
        "training.steps=40",
        "watch.alarms.gap=null",
        "seed=3",
        "dtype=float32",
    ]
    keywords = {"model": "sdxl", "tune": "denoiser_lora", "training": {"steps": 40}, "watch": {"alarms": {"gap": None}}}
    wanted = configure("train", "name=x", *overrides)
    assert meant("train", "dtype=float32", name="x", seed=np.int64(3), **keywords) == wanted
    assert meant("train", *overrides[1:], name="x", **{"model": OmegaConf.create({"path": "a"})}).model.path == "a"
    policy = {"_target_": "textcraftor.sampling.gradients.full", "_partial_": True}
    assert meant("train", gradient=policy).gradient == policy  # the usual one's k is gone
    assert meant("train", gradient=full).gradient == policy


@pytest.mark.parametrize(
    ("keys", "rewards", "weights"),
    [
        ((), {"red": redness}, {"red": 1.0}),
        ((), {"red": (redness, 5), "hpsv2": 50}, {"red": 5.0, "hpsv2": 50.0}),
        ((), {"mine": "aesthetic", "other": ("clip", 0)}, {"mine": 1.0, "other": 0.0}),
        ((), {"red": {"reward": redness, "target": 0.5}, "clip": {"weight": 2.0}}, {"red": 1.0, "clip": 2.0}),
        (("rewards=clip",), {"red": redness}, {"clip": 20.0, "red": 1.0}),
    ],
)
def test_a_dictionary_of_rewards_is_the_mix(keys, rewards, weights):
    config = meant("train", *keys, rewards=rewards)
    if "clip" in weights and keys:
        weights = {**weights, "clip": meant("train", *keys).rewards.clip.weight}
    assert {name: part.weight for name, part in config.rewards.items()} == weights


@pytest.mark.parametrize("scorer", [redness, Redness, Redness(), lambda images, prompts: redness(images, prompts)])
def test_a_scorer_is_named_by_its_import_path_or_given(scorer):
    """What can be imported needs no program; anything else scores within the call alone, and says what it was."""
    importable = scorer in (redness, Redness)
    with calling.meaning("score", (), {"rewards": {"red": scorer}}) as config:
        scores = load_rewards(config.rewards)(IMAGES, ["a", "b"])
    torch.testing.assert_close(scores["red"], redness(IMAGES, []), rtol=0, atol=0)
    target = config.rewards.red.reward
    assert target._target_ == (f"{__name__}.{scorer.__name__}" if importable else GIVEN)
    if importable:
        load_rewards(config.rewards)
        return
    assert target.key == "rewards.red.reward"
    with pytest.raises(
        UsageError, match=r"rewards.red.reward was .*, an object of a Python program, which no command line can"
    ):
        load_rewards(config.rewards)


def test_a_loaded_pipeline_is_the_model_and_stays_as_it_is():
    """Its configuration is that of its folder, else the first of its family; its weights are neither cast nor moved."""
    pipe = DiffusionPipeline.from_pretrained(WEIGHTS / "pipeline")
    weights = {id(one): (one.dtype, one.requires_grad) for one in pipe.unet.parameters()}
    with calling.meaning("train", (), {"model": pipe}) as config:
        assert (config.model.name, config.model.path) == ("toybox", str(WEIGHTS / "pipeline"))
        assert config.model.load == {"_target_": GIVEN_PIPELINE, "what": "a StableDiffusionPipeline"}
        model = made(config.model.load, device="cpu", dtypes={"default": torch.float16, "vae": torch.float32})
    assert (model.unet.dtype, model.vae.dtype, model.text_encoder.dtype) == (
        torch.float16,
        torch.float32,
        torch.float16,
    )
    assert {id(one): (one.dtype, one.requires_grad) for one in pipe.unet.parameters()} == weights
    assert next(model.vae.parameters()).data_ptr() != next(pipe.vae.parameters()).data_ptr()
    pipe.register_to_config(_name_or_path="")
    assert (meant("train", model=pipe).model.name, meant("train", model=pipe).model.path) == ("sd15", "")
    assert meant("train", "model=sd21", model=pipe).model.name == "sd21"
    pipe.text_encoder._hf_hook = object()
    with pytest.raises(UsageError, match="accelerate moves the pipeline's text_encoder"):
        meant("train", model=pipe)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (partial(meant, "train", trainig={"steps": 3}), "unknown key trainig; did you mean training?"),
        (partial(meant, "train", training={"stepz": 3}), "unknown key training.stepz; did you mean training.steps?"),
        (partial(meant, "train", learning_rate=1e-4), "unknown key learning_rate: TextCraftor calls it optim.lr"),
        (partial(meant, "train", model="sdxxl"), "model=sdxxl must be one of flux1_dev, "),
        (partial(meant, "train", training={"steps": "many"}), "training.steps=many must be a whole number"),
        (partial(meant, "train", rewards={}), "rewards={} names no scorer"),
        (partial(meant, "train", rewards={"red": "rde"}), r"\+reward@rewards.red=rde must be one of aesthetic, "),
        (partial(meant, "train", rewards={"red": [redness]}), "rewards.red=.* must be a function or module"),
        (partial(meant, "train", seed=SimpleNamespace()), "seed=.* is a SimpleNamespace: give null, a number"),
        (partial(meant, "train", tuned={"a.b": "x"}), "unknown key tuned.a.b"),
        (partial(meant, "train", "-m"), "'-m' must be key=value"),
        (partial(meant, "generate", prompts="a red circle"), "prompts=a red circle must be a list of texts"),
        (partial(meant, "generate", prompts=[]), "prompts.texts=.* must be a list of texts"),
        (partial(textcraftor.load, "model.path=missing"), "model.path: missing cannot be loaded"),
    ],
)
def test_a_mistake_is_one_line(call, line):
    with pytest.raises(UsageError, match=line) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_within_another_hydra_program_and_in_threads(tmp_path, monkeypatch):
    """That program's own Hydra is as it was; two threads at a time each have their own objects."""
    (tmp_path / "other.yaml").write_text("word: theirs\nhydra: {output_subdir: null, run: {dir: .}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["other"])
    seen = {}

    def scores_of(value: float) -> None:
        for _ in range(3):
            with calling.meaning(
                "score", (), {"rewards": {"own": lambda images, _: images.mean((1, 2, 3)) * value}}
            ) as config:
                seen.setdefault(value, []).append(load_rewards(config.rewards)(IMAGES, ["a", "b"])["own"])

    @hydra.main(config_path=str(tmp_path), config_name="other", version_base="1.2")
    def other(theirs: DictConfig) -> None:
        before, job = GlobalHydra.instance().hydra, HydraConfig.get().job.name
        workers = [threading.Thread(target=scores_of, args=(value,)) for value in (1.0, 2.0)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert GlobalHydra.instance().hydra is before is not None
        assert (HydraConfig.get().job.name, theirs.word, hydra.version.getbase().minor) == (job, "theirs", 2)

    other()
    for value in (1.0, 2.0):
        torch.testing.assert_close(torch.stack(seen[value]), value * IMAGES.mean((1, 2, 3)).expand(3, -1))
