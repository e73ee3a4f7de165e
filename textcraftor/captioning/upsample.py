"""Short prompts to descriptive ones: a rewriter says more, and what it leaves out of the prompt is caught."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from textcraftor.assets import folder_or_id, loading
from textcraftor.config.making import made
from textcraftor.data.prompt_files import given_prompts
from textcraftor.errors import UsageError
from textcraftor.files.writing import check_unfinished, finish, locked, write_text
from textcraftor.models.loading import device_of
from textcraftor.models.seeds import seeded

Upsampler = Callable[[Sequence[str]], list[str]]
INSTRUCTION = """Rewrite the prompt of a picture as one description of {least} to {most} words. Keep everything that it
says, in its own words where you can, and any text in double quotes letter by letter. Add what it leaves open: looks,
places, background, light and style. Answer with the description alone.

Prompt: {prompt}"""
QUOTED = re.compile(r'"[^"]*"')
WORD = re.compile(r"\w+")
# Words that state no fact of their own.
EMPTY = frozenset(
    WORD.findall(
        "a an the and or of in on at to by for with from as is are be it its this that these those there which who "
        "whose picture image photo photograph painting drawing"
    )
)


def check_upsampler(config: DictConfig) -> None:
    """Refuse `upsample=true` for a model that names no upsampler."""
    if config.get("upsample", True) and config.model.get("upsampler") is None:
        raise UsageError("upsample=true needs model.upsampler, which this model does not name")


def upsampler_of(config: DictConfig) -> Upsampler | None:
    """What writes more into prompts, where `upsample=true` asks for it."""
    check_upsampler(config)
    return made(config.model.upsampler) if config.get("upsample", True) else None


def faults(prompt: str, text: str, least: int, most: int) -> list[str]:
    """The faults of a rewriting: facts and quoted texts that it lost, too few or too many words."""
    quoted = [part for part in QUOTED.findall(prompt) if part not in text]
    text_words = {word.lower() for word in WORD.findall(text)}
    words = [word.lower() for word in WORD.findall(QUOTED.sub(" ", prompt))]
    lost = [word for word in dict.fromkeys(words) if word not in EMPTY and not any(map(_same(word), text_words))]
    count = len(text.split())
    length = [] if least <= count <= most else [f"{count} words"]
    return [f"{part} is lost" for part in [*quoted, *lost]] + length


def _same(word: str) -> Callable[[str], bool]:
    """Whether another word is a form of this one: `cats` of `cat`, `running` of `runs`."""
    stem = re.sub(r"(ies|es|s|ing|ed|ly|y|e)$", "", word) if len(word) > 3 else word
    return lambda other: other.startswith(stem) and len(other) - len(stem) <= 4 if len(stem) > 2 else other == word


class InstructedModel:
    """An instruction-tuned language model rewrites prompts, greedily first; a faulty rewriting is drawn again, and
    where none keeps the facts the prompt stands as it is.

    Args:
        path: a local folder or a hub id.
        least, most: words of a rewriting.
        tries: how many rewritings of a prompt are looked at.
    """

    def __init__(
        self, path: str, least: int = 15, most: int = 80, tries: int = 4, device: str = "auto", batch_size: int = 8
    ) -> None:
        if not 1 <= least <= most or tries < 1 or batch_size < 1:
            raise UsageError(f"upsampler: least={least}, most={most}, tries={tries} must be at least 1, least first")
        place = folder_or_id(path, "upsampler.path")
        self.least, self.most, self.tries, self.batch_size = least, most, tries, batch_size
        device = device_of(device)
        with loading(place, "upsampler.path", "an instruction-tuned language model of transformers"):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False, padding_side="left")
            if self.tokenizer.chat_template is None:
                raise UsageError(f"upsampler.path={path} has no chat template: give an instruction-tuned model")
            dtype = torch.float32 if device == "cpu" else "auto"
            loaded: Any = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=False, dtype=dtype)
        self.model = loaded.to(device).eval().requires_grad_(False)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        rewritings: dict[str, str] = {}
        for number in range(self.tries):
            left = [prompt for prompt in dict.fromkeys(prompts) if prompt not in rewritings]
            for start in range(0, len(left), self.batch_size):
                batch = left[start : start + self.batch_size]
                for prompt, text in zip(batch, self._write(batch, number), strict=True):
                    if not faults(prompt, text, self.least, self.most):
                        rewritings[prompt] = text
        return [rewritings.get(prompt, prompt) for prompt in prompts]

    @torch.no_grad()
    def _write(self, prompts: Sequence[str], number: int) -> list[str]:
        """One rewriting of each prompt: greedy in the first try, sampled in later ones."""
        asked = [INSTRUCTION.format(least=self.least, most=self.most, prompt=prompt) for prompt in prompts]
        chats = [[{"role": "user", "content": text}] for text in asked]
        inputs = self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
        ).to(self.model.device)
        with seeded(zlib.crc32(json.dumps([*prompts, number]).encode()), self.model.device):
            written = self.model.generate(
                **inputs,
                max_new_tokens=3 * self.most,
                do_sample=number > 0,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        texts = self.tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot work before any model is loaded."""
    given_prompts(config.prompts)
    check_upsampler(config)
    check_unfinished(folder, "prompts")


def run(config: DictConfig, folder: Path) -> str:
    """Write `prompts.jsonl`: each upsampled prompt with its original, a file for `prompts.path=`."""
    check(config, folder)
    prompts = given_prompts(config.prompts, print)
    upsampler = upsampler_of(config)
    assert upsampler is not None
    upsampled = upsampler(prompts)
    rows = [{"prompt": text, "original": prompt} for prompt, text in zip(prompts, upsampled, strict=True)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with locked(folder):
        write_text(folder / "prompts.jsonl", lines)
        finish(folder, "upsample")
    kept = sum(text == prompt for prompt, text in zip(prompts, upsampled, strict=True))
    return f"wrote {folder / 'prompts.jsonl'}: {len(rows)} prompts, {kept} of them as they were"
