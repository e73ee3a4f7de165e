"""Any image-to-text model of transformers as a captioner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from textcraftor.assets import folder_or_id, loading
from textcraftor.errors import UsageError


class ImageToText:
    """BLIP, Florence-2, Qwen-VL, LLaVA and whatever else `AutoModelForImageTextToText` loads. Greedy.

    Args:
        path: a local folder or a hub id.
        prompt: what the model is asked, or that for each style; null asks nothing, as BLIP can do. Where the processor
            has a chat template it is the user's message beside the picture.
        style: the kind of caption that is wanted.
        max_new_tokens: of a caption.
    """

    def __init__(
        self,
        path: str,
        prompt: str | Mapping[str, str] | None,
        style: str | None = None,
        max_new_tokens: int = 120,
        device: str = "cpu",
    ) -> None:
        if isinstance(prompt, Mapping):
            if style is None or style not in prompt:
                raise UsageError(f"style={style}: captioner.prompt knows {', '.join(prompt)}; or give it as one text")
            prompt = prompt[style]
        place = folder_or_id(path, "captioner.path")
        self.name, self.prompt, self.max_new_tokens = path, prompt, max_new_tokens
        dtype = torch.float32 if device == "cpu" else "auto"
        with loading(place, "captioner.path", "an image-to-text model of transformers"):
            self.processor: Any = AutoProcessor.from_pretrained(place, trust_remote_code=False)
            loaded: Any = AutoModelForImageTextToText.from_pretrained(place, trust_remote_code=False, dtype=dtype)
        self.model = loaded.to(device).eval().requires_grad_(False)
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"  # what is written follows the prompt
        if self.chats and prompt is None:
            raise UsageError(f"captioner.prompt is needed: {path} answers messages")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @property
    def chats(self) -> bool:
        return getattr(self.processor, "chat_template", None) is not None

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        """A caption for each picture; an empty one where the model says nothing."""
        inputs = self._inputs(pictures).to(self.model.device, self.model.dtype)
        written = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        asked = inputs.get("input_ids")
        length = 0 if asked is None else asked.shape[1]
        if length and written.shape[1] > length and torch.equal(written[:, :length], asked):
            written = written[:, length:]
        said = self.processor.batch_decode(written, skip_special_tokens=True)
        return [self._without_prompt(text) for text in said]

    def _inputs(self, pictures: Sequence[Image.Image]) -> Any:
        if not self.chats:
            text = None if self.prompt is None else [self.prompt] * len(pictures)
            return self.processor(images=list(pictures), text=text, return_tensors="pt")
        messages = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": self.prompt}]}]
            for picture in pictures
        ]
        return self.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def _without_prompt(self, text: str) -> str:
        """BLIP begins its answer with the prompt."""
        text = text.strip()
        if self.prompt is not None and text.lower().startswith(self.prompt.lower()):
            text = text[len(self.prompt) :]
        return " ".join(text.split())
