"""Text and paths are taken as typed, whatever signs they hold; words of others are answered with the right key."""

from __future__ import annotations

import hypothesis
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import strategies as st
from omegaconf import OmegaConf

from textcraftor.config.commands import SCHEMAS
from textcraftor.config.overrides import as_typed, quoted
from textcraftor.config.words import WORDS
from textcraftor.errors import UsageError

SIGNS = "ab1_ \\'\"${}[](),:;=~#%&*+-|<>?!@^`./\té漢"
TEXTS = [
    "1_1_1",
    "true",
    "~/x.txt",
    "my prompts (1).txt",
    "a, b",
    "a=b",
    "C:\\new\\",
    "\\${x}",
    "\\\\${x}",
    "${",
    "${now:%Y}",
    "'quoted'",
    'a "KKQ" {x: [1]}',
    "",
    " ",
]
KEYS = {
    "generate": ["prompt", "negative_prompt", "sampling.negative_prompt", "name", "run_dir", "prompts.path", "tuned.a"],
    "train": ["prompts.held_out", "data.path", "data.letters.path", "model.path", "resume", "rewards.clip.reward.path"],
    "score": ["images", "model.scorers.clip.path"],
    "evaluate": ["base", "denoiser.path"],
    "recaption": ["captioner.path"],
    "train-reward": ["clip", "features", "name", "models.a"],
    "train-captioner": ["captioner.clip", "captioner.language_model"],
}


@hypothesis.settings(max_examples=2000, deadline=None, database=None, derandomize=True)
@hypothesis.given(st.text() | st.text(SIGNS))
def test_any_text_comes_out_of_the_grammars_as_it_was_typed(text):
    value = OverridesParser.create().parse_override(f"prompt={quoted(text)}").value()
    assert OmegaConf.create({"prompt": value}).prompt == text


@pytest.mark.parametrize("command", KEYS)
def test_text_and_paths_are_taken_as_typed(configure, command):
    for sign, text in (("", "1_1_1"), ("+", "~/a (1), b=c\\${d}.txt"), ("++", "true")):
        overrides = as_typed(command, [f"{sign}{key}={text}" for key in KEYS[command]])
        config = configure(command, *overrides)
        assert [OmegaConf.select(config, key) for key in KEYS[command]] == [text] * len(KEYS[command])


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_is_taken_as_typed(configure, text):
    config = configure("generate", *as_typed("generate", [f"prompt={text}", f"negative_prompt={text}"]))
    assert (config.prompt, config.sampling.negative_prompt) == (text, text)


def test_null_is_null_where_a_key_may_be_null(configure):
    config = configure("generate", *as_typed("generate", ["prompt=null", "name=null", "denoiser.path=null"]))
    assert (config.prompt, config.name, config.denoiser.path) == (None, "null", None)


@pytest.mark.parametrize("sign", ["", "+", "++"])
@pytest.mark.parametrize(
    ("command", "word", "answer"),
    [
        ("train", "learning_rate", "optim.lr"),
        ("train", "lr", "optim.lr"),
        ("train", "training.learning_rate", "optim.lr"),
        ("generate", "num_inference_steps", "sampling.steps"),
        ("generate", "steps", "sampling.steps"),
        ("generate", "guidance_scale", "sampling.guidance_scale"),
        ("generate", "cfg_scale", "sampling.guidance_scale"),
        ("generate", "resolution", "sampling.width or sampling.height"),
        ("train", "mixed_precision", "dtype"),
        ("train", "weight_dtype", "dtype"),
        ("train", "train_batch_size", "training.batch_size"),
        ("train", "batch_size", "training.batch_size"),
        ("train-captioner", "train_batch_size", "batch_size"),
        ("train", "max_train_steps", "training.steps"),
        ("train", "gradient_checkpointing", "memory.budget"),
        ("train", "network_dim", "tune.text_encoder.lora.rank or tune.denoiser.lora.rank"),
        ("train", "unet_lr", "tune.denoiser.lr"),
        ("train", "text_encoder_lr", "tune.text_encoder.lr"),
        ("train", "tune.unet.lr", "tune.denoiser.lr"),
        ("generate", "unet.path", "denoiser.path"),
        ("train", "max_grad_norm", "training.max_grad_norm"),
        ("train", "lr_scheduler", "training.lr_schedule"),
        ("train", "lr_warmup_steps", "training.warmup"),
        ("train", "lr_num_cycles", "training.lr_cycles"),
        ("train", "output_dir", "run_dir"),
        ("train", "pretrained_model_name_or_path", "model.path"),
        ("train", "use_8bit_adam", "optim._target_=bitsandbytes.optim.AdamW8bit"),
        ("train", "checkpointing_steps", "training.checkpoint_every"),
        ("train", "validation_prompt", "prompts.held_out"),
        ("train", "report_to", "tracker"),
    ],
)
def test_words_of_others_are_answered_with_our_key(configure, sign, command, word, answer):
    with pytest.raises(UsageError) as refused:
        configure(command, f"{sign}{word}=1")
    assert str(refused.value) == f"unknown key {word}: TextCraftor calls it {answer}"


def test_every_word_leads_somewhere(configure):
    """No answer of the table names a key that no command has."""
    from textcraftor.config.words import ours

    for word, answers in WORDS.items():
        assert {answer for command in SCHEMAS for answer in ours(command, word)} >= set(answers), word


@pytest.mark.parametrize(
    ("command", "override", "line"),
    [
        ("train", "trainig.steps=3", "unknown key trainig.steps; did you mean training.steps?"),
        ("train", "betas=1", "unknown key betas; did you mean optim.betas?"),
        ("train", "rewards.clp.weight=1", "unknown key rewards.clp.weight; did you mean rewards.clip.weight?"),
        ("train", "target=1", "unknown key target"),
        ("train", "+unknown=1", "unknown key unknown"),
        ("train", "+training.unknown=1", "unknown key training.unknown"),
        ("train", "+model.unknown=1", "unknown key model.unknown"),
        ("generate", "gradient=full", "unknown key gradient"),
        ("generate", "+gradient=full", "unknown key gradient"),
    ],
)
def test_an_unknown_key_is_refused_and_only_a_near_one_is_named(configure, command, override, line):
    with pytest.raises(UsageError) as refused:
        configure(command, override)
    assert str(refused.value) == line


def test_open_mappings_take_new_names(configure):
    new = ["+rewards.red.weight=5", "+rewards.red.reward._target_=textcraftor.rewards.clip.ClipScore.load"]
    config = configure("train", *new, "+rewards.red.reward.path=x", "+watch.alarms.mine.low=-1")
    assert config.rewards.red.weight == 5
    assert config.watch.alarms.mine.low == -1
    config = configure("generate", "tuned.a=x", "mix.a=.5", "grid.a=[0,1]")
    assert (config.tuned.a, config.mix.a, config.grid.a) == ("x", 0.5, [0, 1])


def test_prompts_in_the_configuration_itself_are_texts(configure):
    """Within a list as elsewhere: an interpolation is none."""
    for command in ("train", "generate", "evaluate", "score", "enhance"):
        (override,) = as_typed(command, ["prompts.texts=['a \"KKQ\", ${now:%Y}','a red circle']"])
        assert [*configure(command, override).prompts.texts] == ['a "KKQ", ${now:%Y}', "a red circle"]
