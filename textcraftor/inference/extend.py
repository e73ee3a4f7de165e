"""Prompt engineering by machine: a language model, or any callable, writes more into a prompt before it is encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from textcraftor.assets import folder_or_id
from textcraftor.errors import UsageError


def check_extender(config: DictConfig) -> None:
    """Refuse `extend=true` for a model that names no extender."""
    if config.extend and config.model.get("extender") is None:
        raise UsageError("extend=true needs model.extender, which this model does not name")


def extender_of(config: DictConfig) -> Callable[[Sequence[str]], list[str]] | None:
    """What writes more into prompts, where `extend=true` asks for it."""
    check_extender(config)
    return instantiate(config.model.extender) if config.extend else None


class LanguageModel:
    """A causal language model that goes on from the prompt, as those trained on people's prompts do.

    Greedy, so that a prompt has one extension; what it writes begins after the prompt and ends with its first line.

    Args:
        path: a local folder or a hub id, such as `Gustavosta/MagicPrompt-Stable-Diffusion`.
        max_new_tokens: that it may add.
    """

    def __init__(self, path: str, max_new_tokens: int = 40) -> None:
        if max_new_tokens < 1:
            raise UsageError(f"extender.max_new_tokens={max_new_tokens} must be at least 1")
        place = folder_or_id(path, "extender.path")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(place)
        self.model: Any = AutoModelForCausalLM.from_pretrained(place).eval().requires_grad_(False)
        self.max_new_tokens = max_new_tokens

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> list[str]:
        return [self._extend(prompt) for prompt in prompts]

    def _extend(self, prompt: str) -> str:
        inputs = self.tokenizer(prompt, return_tensors="pt")
        given = inputs["input_ids"].shape[1]
        end = self.tokenizer.eos_token_id
        options = {"do_sample": False, "repetition_penalty": 1.2, "pad_token_id": end}
        written = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, **options)[0, given:]
        lines = self.tokenizer.decode(written, skip_special_tokens=True).split("\n")
        return f"{prompt}{lines[0].rstrip()}"
