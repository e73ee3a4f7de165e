"""Prompts to tokens as the published scorers make them, and text features kept by prompt."""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable, Sequence

import ftfy
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase

from textcraftor.assets import folder_or_id, loading


def clean(prompt: str) -> str:
    """open_clip's cleaning before it tokenises: broken Unicode, curly quotes and HTML entities put right."""
    return html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()


class PromptTokenizer:
    """A scorer's tokenizer: every prompt padded or cut to one length.

    Args:
        tokenizer: a transformers tokenizer.
        length: the context, in tokens, start and end included.
        open_clip: clean prompts first and pad with 0, as open_clip does; else pad with the tokenizer's own token.
        lower: write prompts in lower case first, as SigLIP was trained.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, length: int, open_clip: bool = False, lower: bool = False
    ) -> None:
        self.tokenizer, self.length, self.open_clip = tokenizer, length, open_clip
        self.prepare: Callable[[str], str] = clean if open_clip else str.lower if lower else str
        self._warned = False

    def __call__(self, prompts: Sequence[str]) -> BatchEncoding:
        """`input_ids` and `attention_mask`, each (batch, length). Warns once of a prompt that is cut."""
        texts = [self.prepare(prompt) for prompt in prompts]
        # open_clip spells out what looks like a special token.
        ids = self.tokenizer(texts, verbose=False, split_special_tokens=self.open_clip).input_ids
        longest = max(range(len(ids)), key=lambda index: len(ids[index]))
        if len(ids[longest]) > self.length and not self._warned:
            self._warned = True
            warnings.warn(
                f"prompt {prompts[longest]!r} has {len(ids[longest])} tokens, the scorer reads the first "
                f"{self.length}; the rest is ignored, here and in any other prompt as long",
                stacklevel=2,
            )
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
            split_special_tokens=self.open_clip,
        )
        if self.open_clip:
            tokens["input_ids"] = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, 0)
        return tokens


def load_tokenizer(kind: type[PreTrainedTokenizerBase] | type[AutoTokenizer], path: str) -> PreTrainedTokenizerBase:
    """A transformers tokenizer from a folder or hub id."""
    with loading(path, "tokenizer", "a transformers folder"):
        return kind.from_pretrained(folder_or_id(path, "tokenizer"))


class Cache:
    """What a frozen model makes of a prompt, computed once each.

    Args:
        encode: prompts to a tensor with one row each.
        limit: prompts kept at most; beyond it all are dropped.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Tensor], limit: int = 100_000) -> None:
        self.encode, self.limit = encode, limit
        self._rows: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Float[Tensor, batch * row] | Int[Tensor, batch * row]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]
        if new:
            if len(self._rows) + len(new) > self.limit:
                self._rows.clear()
                new = list(dict.fromkeys(prompts))
            self._rows |= dict(zip(new, self.encode(new), strict=True))
        return torch.stack([self._rows[prompt] for prompt in prompts])
