"""Unknown keys: words that people bring from diffusers, kohya and peft, and the nearest of our own keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from itertools import zip_longest

from textcraftor.config.commands import SCHEMAS
from textcraftor.config.rules import Rule
from textcraftor.config.schema import Key, key_of
from textcraftor.errors import UsageError

NEAR, ALIKE = 0.8, 0.6  # how alike two keys, and each of their parts, must be for a suggestion
ADAM_8BIT = "optim._target_=bitsandbytes.optim.AdamW8bit"
LORA = ("tune.text_encoder.lora", "tune.denoiser.lora")

# A word of others -> our keys; those that the command has are named.
WORDS: dict[str, tuple[str, ...]] = {
    "learning_rate": ("optim.lr",),
    "lr": ("optim.lr",),
    "unet_lr": ("tune.denoiser.lr",),
    "unet": ("tune=denoiser",),
    "unet_path": ("denoiser.path",),
    "unet_strength": ("denoiser.strength",),
    "denoiser_lr": ("tune.denoiser.lr",),
    "transformer_lr": ("tune.denoiser.lr",),
    "text_encoder_lr": ("tune.text_encoder.lr",),
    "text_encoder_lr1": ("tune.text_encoder.lr",),
    "text_encoder_lr2": ("tune.text_encoder_2.lr",),
    "lr_scheduler": ("training.lr_schedule",),
    "lr_scheduler_type": ("training.lr_schedule",),
    "lr_warmup_steps": ("training.warmup",),
    "lr_num_cycles": ("training.lr_cycles",),
    "lr_scheduler_num_cycles": ("training.lr_cycles",),
    "warmup_steps": ("training.warmup", "warmup"),
    "num_inference_steps": ("sampling.steps",),
    "num_steps": ("sampling.steps",),
    "sample_steps": ("sampling.steps",),
    "steps": ("sampling.steps", "training.steps"),
    "guidance_scale": ("sampling.guidance_scale",),
    "cfg_scale": ("sampling.guidance_scale",),
    "cfg": ("sampling.guidance_scale",),
    "guidance": ("sampling.guidance_scale",),
    "scale": ("sampling.guidance_scale",),
    "sampler": ("sampling.scheduler",),
    "sample_sampler": ("sampling.scheduler",),
    "scheduler": ("sampling.scheduler",),
    "noise_scheduler": ("sampling.scheduler",),
    "resolution": ("sampling.width", "sampling.height"),
    "image_size": ("sampling.width", "sampling.height"),
    "width": ("sampling.width",),
    "height": ("sampling.height",),
    "mixed_precision": ("dtype",),
    "weight_dtype": ("dtype",),
    "precision": ("dtype",),
    "torch_dtype": ("dtype",),
    "full_fp16": ("dtype",),
    "full_bf16": ("dtype",),
    "fp16": ("dtype",),
    "bf16": ("dtype",),
    "train_batch_size": ("training.batch_size", "batch_size"),
    "batch_size": ("training.batch_size",),
    "per_device_train_batch_size": ("training.batch_size", "batch_size"),
    "max_train_steps": ("training.steps",),
    "num_train_steps": ("training.steps",),
    "max_steps": ("training.steps",),
    "num_train_epochs": ("training.steps",),
    "max_train_epochs": ("training.steps",),
    "epochs": ("training.steps",),
    "gradient_checkpointing": ("memory.budget",),
    "gradient_accumulation_steps": ("memory.budget",),
    "max_grad_norm": ("training.max_grad_norm",),
    "clip_grad_norm": ("training.max_grad_norm",),
    "use_ema": ("training.ema_decay",),
    "ema_decay": ("training.ema_decay",),
    "adam_beta1": ("optim.betas",),
    "adam_beta2": ("optim.betas",),
    "adam_weight_decay": ("optim.weight_decay",),
    "adam_epsilon": ("+optim.eps",),
    "optimizer": ("optim._target_",),
    "optimizer_type": ("optim._target_",),
    "use_8bit_adam": (ADAM_8BIT,),
    "network_dim": tuple(f"{lora}.rank" for lora in LORA),
    "rank": tuple(f"{lora}.rank" for lora in LORA),
    "lora_rank": tuple(f"{lora}.rank" for lora in LORA),
    "network_alpha": tuple(f"{lora}.alpha" for lora in LORA),
    "lora_alpha": tuple(f"{lora}.alpha" for lora in LORA),
    "target_modules": tuple(f"{lora}.target_modules" for lora in LORA),
    "lora_layers": tuple(f"{lora}.target_modules" for lora in LORA),
    "train_text_encoder": ("tune=text_encoder",),
    "network_train_text_encoder_only": ("tune=text_encoder_lora",),
    "network_train_unet_only": ("tune=denoiser_lora",),
    "output_dir": ("run_dir",),
    "logging_dir": ("run_dir",),
    "output_name": ("name",),
    "project_name": ("name",),
    "pretrained_model_name_or_path": ("model.path",),
    "pretrained_model": ("model.path",),
    "model_name": ("model.path",),
    "model_id": ("model.path",),
    "checkpointing_steps": ("training.checkpoint_every",),
    "save_every_n_steps": ("training.checkpoint_every",),
    "save_steps": ("training.checkpoint_every",),
    "checkpoints_total_limit": ("training.keep_checkpoints",),
    "resume_from_checkpoint": ("resume",),
    "validation_prompt": ("prompts.held_out",),
    "validation_prompts": ("prompts.held_out",),
    "sample_prompts": ("prompts.held_out", "prompts.path"),
    "validation_steps": ("watch.every",),
    "validation_epochs": ("watch.every",),
    "sample_every_n_steps": ("watch.every",),
    "num_validation_images": ("watch.prompts",),
    "report_to": ("tracker",),
    "log_with": ("tracker",),
    "train_data_dir": ("data.path",),
    "instance_data_dir": ("data.path",),
    "dataset_name": ("data.path",),
    "caption_dropout_rate": ("captions.dropout",),
    "proportion_empty_prompts": ("captions.dropout",),
    "snr_gamma": ("denoising.min_snr",),
    "min_snr_gamma": ("denoising.min_snr",),
    "negative": ("negative_prompt",),
    "num_images_per_prompt": ("seeds",),
    "n_samples": ("seeds",),
    "lora_weights": ("tuned.a", "denoiser.path"),
    "lora_scale": ("denoiser.strength",),
    "reward_fn": ("rewards",),
}
# A part of a dotted key -> ours.
PARTS = {"unet": "denoiser", "transformer": "denoiser", "te": "text_encoder", "te1": "text_encoder"}


def unknown(command: str, key: str, others: Iterable[str] = ()) -> UsageError:
    """The error for a key that a command does not have.

    Args:
        others: keys beside those of the dataclasses, such as the names of rewards.
    """
    closest, answers = nearest(key, [*keys_of(command), *others]), list(ours(command, key))
    if answers and not (closest and "." in key):
        return UsageError(f"unknown key {key}: TextCraftor calls it {' or '.join(answers)}")
    return UsageError(f"unknown key {key}" + (f"; did you mean {closest}?" if closest else ""))


def ours(command: str, key: str) -> Iterator[str]:
    """What TextCraftor calls a word of others, of the keys that the command has."""
    schema = SCHEMAS[command]
    renamed = ".".join(PARTS.get(part, part) for part in key.split("."))
    if renamed != key and key_of(schema, renamed):
        yield renamed
        return
    for answer in WORDS.get(key.rpartition(".")[2].replace("-", "_"), ()):
        if key_of(schema, answer.partition("=")[0].lstrip("+")):
            yield answer


def keys_of(command: str) -> Iterator[str]:
    """Every key of a command that is a user's to set."""
    return Key(SCHEMAS[command], Rule("")).keys()


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The key that was meant: spelt much alike in every part, or ending in this word; never one of Hydra's own."""
    known = [one for one in known if not one.rpartition(".")[2].startswith("_")]
    near = difflib.get_close_matches(key, [one for one in known if alike(key, one)], 1, NEAR)
    same = [one for one in known if one.rpartition(".")[2] == key]
    return next(iter([*near, *same]), None)


def alike(key: str, other: str) -> bool:
    """Whether two dotted keys have as many parts, each much like the other's."""
    pairs = list(zip_longest(key.split("."), other.split("."), fillvalue=""))
    return all(difflib.SequenceMatcher(None, *pair).ratio() >= ALIKE for pair in pairs)
