"""Any image-to-text model of transformers, as a captioner or asked about each picture apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
)

from textcraftor.assets import folder_or_id, loading
from textcraftor.errors import UsageError
from textcraftor.models.seeds import seeded

# What a question is about: one picture, several beside each other, or none.
Shown = Image.Image | Sequence[Image.Image]
NEEDED = "an image-to-text model of transformers"


def pictures_of(shown: Shown) -> list[Image.Image]:
    """The pictures that a question is about."""
    return [shown] if isinstance(shown, Image.Image) else [*shown]


class ImageToText:
    """BLIP, Florence-2, Qwen-VL, LLaVA and whatever else `AutoModelForImageTextToText` loads; and BLIP's VQA.

    Args:
        path: a local folder or a hub id.
        prompt: what the model is asked as a captioner, or that for each style; null asks nothing, as BLIP can do. Where
            the processor has a chat template it is the user's message beside the picture.
        style: the kind of caption that is wanted.
        max_new_tokens: of a text.
        group: where these arguments stand in the configuration, for messages.
    """

    def __init__(
        self,
        path: str,
        prompt: str | Mapping[str, str] | None,
        style: str | None = None,
        max_new_tokens: int = 120,
        device: str = "cpu",
        group: str = "captioner",
    ) -> None:
        if isinstance(prompt, Mapping):
            if style is None or style not in prompt:
                raise UsageError(f"style={style}: {group}.prompt knows {', '.join(prompt)}; or give it as one text")
            prompt = prompt[style]
        place = folder_or_id(path, f"{group}.path")
        self.name, self.prompt, self.max_new_tokens = path, prompt, max_new_tokens
        dtype = torch.float32 if device == "cpu" else "auto"
        with loading(place, f"{group}.path", NEEDED):
            self.processor: Any = AutoProcessor.from_pretrained(place, trust_remote_code=False)
            loaded: Any = _class_in(place).from_pretrained(place, trust_remote_code=False, dtype=dtype)
        if not hasattr(loaded, "generate"):
            raise UsageError(f"{group}.path: {path} is a {type(loaded).__name__}, which writes no text: give {NEEDED}")
        self.model = loaded.to(device).eval().requires_grad_(False)
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"  # what is written follows the prompt
        if self.chats and prompt is None:
            raise UsageError(f"{group}.prompt is needed: {path} answers messages")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @property
    def chats(self) -> bool:
        return getattr(self.processor, "chat_template", None) is not None

    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        """A caption for each picture, greedy; an empty one where the model says nothing."""
        texts = self.answers(pictures, [self.prompt] * len(pictures))
        return [" ".join(text.split()) for text in texts]

    @torch.no_grad()
    def answers(self, pictures: Sequence[Shown], asked: Sequence[str | None], seed: int | None = None) -> list[str]:
        """What the model writes on each picture.

        Args:
            asked: about each picture; None, then for all, asks nothing.
            seed: of a draw; None takes the likeliest token each time.
        """
        inputs = self._inputs(pictures, asked).to(self.model.device, self.model.dtype)
        with seeded(seed, self.model.device):
            written = self.model.generate(
                **inputs, max_new_tokens=self.max_new_tokens, do_sample=seed is not None, num_beams=1
            )
        read = inputs.get("input_ids")
        length = 0 if read is None else read.shape[1]
        if length and written.shape[1] > length and torch.equal(written[:, :length], read):
            written = written[:, length:]
        texts = self.processor.batch_decode(written, skip_special_tokens=True)
        return [_without(prompt, text.strip()) for prompt, text in zip(asked, texts, strict=True)]

    @torch.no_grad()
    def probabilities(
        self, pictures: Sequence[Shown], asked: Sequence[str], words: Sequence[str]
    ) -> Float[Tensor, "batch words"]:
        """How likely an answer begins with the first token of each word, over the whole vocabulary, in [0, 1].

        Raises:
            UsageError: a word that the tokenizer does not know.
        """
        tokens = [self._first_token(word) for word in words]
        inputs = self._inputs(pictures, asked).to(self.model.device, self.model.dtype)
        options = {"do_sample": False, "num_beams": 1, "return_dict_in_generate": True, "output_logits": True}
        logits = self.model.generate(**inputs, max_new_tokens=1, **options).logits[0]
        return logits.float().softmax(-1)[:, tokens].cpu()

    def _first_token(self, word: str) -> int:
        tokenizer = self.processor.tokenizer
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if not ids or ids[0] == tokenizer.unk_token_id:
            raise UsageError(f"{word!r} is no word of {self.name}: write how its answer shall begin, such as Yes")
        return ids[0]

    def _inputs(self, pictures: Sequence[Shown], asked: Sequence[str | None]) -> Any:
        shown = [pictures_of(one) for one in pictures]
        if not self.chats:
            if any(len(one) != 1 for one in shown):
                raise UsageError(f"{self.name} answers about one picture at a time: take a model that answers messages")
            text = None if asked[0] is None else list(asked)
            padding = {"padding": True} if len({*asked}) > 1 else {}
            return self.processor(images=[one for (one,) in shown], text=text, return_tensors="pt", **padding)
        parts = [[{"type": "image", "image": picture} for picture in one] for one in shown]
        messages = [
            [{"role": "user", "content": [*part, {"type": "text", "text": text}]}]
            for part, text in zip(parts, asked, strict=True)
        ]
        return self.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )


def _class_in(place: str) -> Any:
    """The class of transformers that loads a folder: those for question answering have another head."""
    names = AutoConfig.from_pretrained(place, trust_remote_code=False).architectures or []
    answers = any(name.endswith("ForQuestionAnswering") for name in names)
    return AutoModelForVisualQuestionAnswering if answers else AutoModelForImageTextToText


def _without(prompt: str | None, text: str) -> str:
    """BLIP begins its answer with the prompt."""
    if prompt is not None and text.lower().startswith(prompt.lower()):
        text = text[len(prompt) :].strip()
    return text
