"""Null and wrong types are refused in one line with the key and the rule, whatever the key."""

from __future__ import annotations

import dataclasses
import functools

import pytest
from omegaconf import DictConfig, OmegaConf

from textcraftor.config.commands import SCHEMAS
from textcraftor.config.compose import compose, keys, register
from textcraftor.config.overrides import literal
from textcraftor.config.schema import Key, key_of
from textcraftor.config.tune import rates_of
from textcraftor.config.typed import typed
from textcraftor.errors import UsageError

PLAIN = (int, float, bool, str)


@functools.cache
def defaults(command: str) -> DictConfig:
    """What the command means without overrides, with one scorer where it has several, which are typed alike."""
    register()
    fewer = ["rewards=aesthetic"] if key_of(SCHEMAS[command], "rewards") else []
    return OmegaConf.create(literal(OmegaConf.to_container(compose(command, fewer), resolve=True)))


def own_keys(command: str) -> dict[str, Key]:
    """Every key that the command holds by default, but those of a group that an earlier command has had too."""
    seen, found = set(), {}
    for one in SCHEMAS:
        for key, _ in keys(OmegaConf.to_container(defaults(one))):
            above = key_of(SCHEMAS[one], key.rpartition(".")[0]) if "." in key else Key(SCHEMAS[one], rule=None)
            known = key_of(SCHEMAS[one], key)
            assert known is not None, f"{one} has {key} in its file and not in its dataclass"
            place = (above.known or above.kind, key.rpartition(".")[2])
            if one == command and place not in seen:
                found[key] = known
            seen.add(place)
        if one == command:
            return found
    raise AssertionError(command)


def refusal(command: str, key: str, value) -> str | None:
    """What is answered to a command with this value for a key; None where the value is taken."""
    config = defaults(command).copy()
    OmegaConf.update(config, key, value, merge=False)
    try:
        typed(command, config)
    except UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("command", SCHEMAS)
def test_null_is_refused_unless_the_type_allows_it(command):
    for key, known in own_keys(command).items():
        said = refusal(command, key, None)
        if not known.nullable and not known.rule.judges_null:
            assert said is not None, key
            assert said.startswith(f"{key}=null must be "), said
            assert "\n" not in said


@pytest.mark.parametrize("command", SCHEMAS)
def test_wrong_types_are_refused(command):
    """A list is no number, no text and no group; a number is no list and no group."""
    for key, known in own_keys(command).items():
        group = dataclasses.is_dataclass(known.kind)
        if known.kind in PLAIN or group:
            said = refusal(command, key, ["a"] if known.kind in PLAIN else 5)
            assert said is not None, key
            assert said.startswith(f"{key}="), said
            assert " must be " in said
        if known.kind in (int, float, bool):
            assert (refusal(command, key, "abc") or "").startswith(f"{key}=abc must be "), key


@pytest.mark.parametrize(
    ("command", "overrides", "line"),
    [
        ("train", ["optim.lr=null"], "optim.lr=null must be auto or a number above 0"),
        ("train", ["optim.lr=inf"], "optim.lr=inf must be auto or a number above 0"),
        ("train", ["optim.lr=nan"], "optim.lr=nan must be auto or a number above 0"),
        ("train", ["tune.text_encoder.lr=0"], "tune.text_encoder.lr=0 must be auto or a number above 0"),
        (
            "train",
            ["optim.betas=[2,3]"],
            "optim.betas=[2, 3] must be two numbers in [0, 1), as optim.betas=[0.9,0.999]",
        ),
        ("train", ["optim.betas=5"], "optim.betas=5 must be two numbers in [0, 1), as optim.betas=[0.9,0.999]"),
        ("train", ["optim.betas=[a,b]"], "optim.betas=[a, b] must be two numbers in [0, 1), as"),
        ("train", ["optim.betas=null"], "optim.betas=null must be two numbers in [0, 1), as"),
        ("train", ["optim._target_=torch.optim.SGD"], "torch.optim.SGD takes no betas: leave it out with ~optim.betas"),
        ("train", ["optim._target_=no_such.AdamW8bit"], "cannot be loaded: No module named 'no_such': install its"),
        ("train", ["+optim.foo=1"], "optim.foo=1: torch.optim.AdamW takes no foo"),
        ("train", ["training.ema_decay=1"], "training.ema_decay=1 must be below 1"),
        ("train", ["training.max_grad_norm=0"], "training.max_grad_norm=0 must be above 0"),
        ("train", ["training.max_grad_norm=nan"], "training.max_grad_norm=nan must be finite"),
        ("generate", ["sampling.guidance_scale=nan"], "sampling.guidance_scale=nan must be finite"),
        ("train", [f"seed={2**64}"], f"seed={2**64} must be at most {2**64 - 1}"),
        ("tune-captions", ["seed=-1"], "seed=-1 must be at least 0"),
        ("train-captioner", [f"seed={2**64}"], f"seed={2**64} must be at most {2**64 - 1}"),
        (
            "train",
            [f"watch.seeds=[0,{2**64}]"],
            f"watch.seeds=[0, {2**64}] must be a list of seeds of at most {2**64 - 1}",
        ),
        ("evaluate", [f"seeds=[{2**64}]"], f"seeds=[{2**64}] must be a list of seeds of at most {2**64 - 1}"),
        ("generate", [f"seeds=[{2**70}]"], f"seeds=[{2**70}] must be a list of seeds of at most {2**64 - 1}"),
        ("train", ["training.steps=1e3"], "training.steps=1000.0 must be a whole number, at least 1"),
        ("train", ["seed=1.5"], "seed=1.5 must be a whole number, at least 0"),
        ("train", ["watch.alarms.held_out.low=abc"], "watch.alarms.held_out.low=abc must be a number"),
        ("train", ["evaluation.seeds=[a]"], "evaluation.seeds=[a] must be a list of whole numbers from 0 on, as"),
        ("train", ["evaluation.seeds=[-1]"], "evaluation.seeds=[-1] must be a list of whole numbers from 0 on, as"),
        ("train", ["evaluation.seeds=[1,1]"], "must be a list of at least one seed, each named once"),
        ("train", ["rewards.clip.weight=null"], "rewards.clip.weight=null must be a number"),
        ("train", ["+rewards.red.weight=5"], "rewards.red.reward is needed"),
        (
            "train",
            ["gradient.k=null"],
            "gradient.k=null must be of the type int: textcraftor.sampling.gradients.last_k",
        ),
        ("train", ["gradient=full", "+gradient.k=2"], "textcraftor.sampling.gradients.full takes no k"),
        ("train", ["gradient=refl", "gradient.first=.9", "gradient.last=.1"], "must rise within [0, 1]"),
        ("train", ["tune.text_encoder.span=[1,0]"], "must be a share of the steps, within [0, 1]"),
        ("train", ["tune.denoiser.lr=1e-4"], "tune.denoiser.lr: tune.denoiser is null; give tune.denoiser={...}"),
        ("train", ["ocr=trocr"], "Could not find 'ocr/trocr' Available options in 'ocr': published"),
        (
            "train",
            ["rewards=ocr", "rewards.ocr.reward.alphabet=[A,B]"],
            "rewards.ocr.reward.alphabet=[A, B] must be text",
        ),
        ("train", ["tune=nothing"], "Could not find 'tune/nothing' Available options in 'tune': both both_lora"),
        (
            "train",
            ["model=null"],
            "model=null must be one of flux1_dev, flux1_schnell, flux2_klein, sd15, sd21, sd35_medium, sdxl, toybox",
        ),
        ("generate", ["mix.a=much"], "mix.a=much must be a finite number, or rest"),
        ("generate", ["grid.a=5"], "grid.a=5 must be a list of weights, as grid.a=[0,.5,1]"),
        ("generate", ["grid.a=[]"], "grid.a=[] must be a list of weights, as grid.a=[0,.5,1]"),
        ("app", ["port=70000"], "port=70000 must be at most 65535"),
    ],
)
def test_values_that_cannot_be_meant(configure, command, overrides, line):
    with pytest.raises(UsageError) as refused:
        configure(command, *overrides)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim._target_=torch.optim.SGD", "~optim.betas", "+optim.momentum=0.9"],
        ["+optim.eps=1e-6"],
        ["gradient=ddpo", "gradient.k=null"],
        ["watch.alarms.clip=null"],
        ["rewards.aesthetic=null"],
        ["rewards.clip.target=2"],
        ["+training.steps=3"],
    ],
)
def test_what_a_type_allows_is_taken(configure, overrides):
    configure("train", *overrides)


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        ([], {"text_encoder": 2e-4}),
        (["tune=both"], {"text_encoder": 2e-4, "denoiser": 1e-4}),
        (["tune=both_lora"], {"text_encoder": 3e-3, "denoiser": 3e-3}),
        (["tune=both", "model=sd15"], {"text_encoder": 1e-6, "denoiser": 1e-5}),
        (["tune=both", "optim.lr=5e-4"], {"text_encoder": 5e-4, "denoiser": 5e-4}),
        (["tune=both", "optim.lr=5e-4", "tune.denoiser.lr=7e-6"], {"text_encoder": 5e-4, "denoiser": 7e-6}),
        (["tune.denoiser={lora: {rank: 4}}"], {"text_encoder": 2e-4, "denoiser": 3e-3}),
    ],
)
def test_each_part_has_its_own_learning_rate(configure, overrides, rates):
    """Its own, else optim.lr, else the model's; the configuration that is written holds the number."""
    config = configure("train", *overrides)
    assert rates_of(config) == rates
    assert {part: config.tune[part].lr for part in rates} == rates


def test_a_resumed_run_has_typed_values_too(tmp_path):
    from textcraftor.config.resume import resumed_config

    OmegaConf.save(defaults("train"), tmp_path / "config.yaml")
    assert resumed_config("train", [f"resume={tmp_path}", "training.steps=90"]).training.steps == 90
    for override, line in {
        "training.steps=abc": "training.steps=abc must be a whole number",
        "memory.budget=null": "memory.budget=null must be auto or a number of GB above 0",
        "device=null": "device=null must be a name",
    }.items():
        with pytest.raises(UsageError, match=line):
            resumed_config("train", [f"resume={tmp_path}", override])
