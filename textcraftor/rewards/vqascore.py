"""VQAScore (Lin et al. 2024): how likely is it that an image-text model says Yes, the picture shows the prompt?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from textcraftor.errors import UsageError
from textcraftor.rewards.base import Reward
from textcraftor.rewards.image_text import ImageText, load_image_text


class VQAScore(Reward):
    """P(answer | picture, question) of the answer's first token over the whole vocabulary, in [0, 1] (eq. 1).

    Args:
        reader: see `load_image_text`.
        question: with {} where the prompt goes.
        answer: how the wanted answer begins.
    """

    def __init__(self, reader: ImageText, question: str, answer: str) -> None:
        super().__init__()
        if question.count("{}") != 1:
            raise UsageError(f"question={question} must hold {{}} once, where the prompt goes")
        ids = reader.tokenizer(answer, add_special_tokens=False).input_ids
        if not ids or ids[0] == reader.tokenizer.unk_token_id:
            raise UsageError(f"answer={answer} is no word of this model: write how its answer shall begin, such as Yes")
        self.reader, self.question, self.answer = reader, question, ids[0]
        self.freeze()

    @classmethod
    def load(cls, path: str, question: str, answer: str) -> VQAScore:
        """Load an image-text model from a folder or hub id."""
        return cls(load_image_text(path), question, answer)

    def check(self, prompts: Sequence[str]) -> None:
        self.reader.check(prompts)

    def judge(self, seen: Mapping[str, Tensor], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Scores of what `reader.look` made of pictures."""
        self.check(prompts)
        given = self.reader.inputs(seen, [self.question.replace("{}", prompt) for prompt in prompts])
        logits = self.reader.model(**given, logits_to_keep=1, use_cache=False).logits[:, -1]
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return precise.softmax(-1)[:, self.answer]

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        return self.judge(self.reader.look(images), prompts).to(images.dtype)
