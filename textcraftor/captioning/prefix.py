"""A language model that reads a picture as a prefix of its text: the captioner of "Improving Image Generation with
Better Captions" (Betker et al. 2023, section 2), in the form of ClipCap (Mokady et al. 2021, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModelWithProjection

from textcraftor.assets import folder_or_id, loading
from textcraftor.errors import UsageError
from textcraftor.files.reading import check_confined, read_json, shaped
from textcraftor.files.writing import replacing_folder, write_json
from textcraftor.rewards.checkpoints import load_pretrained
from textcraftor.rewards.preprocessing import clip_pixels, from_pil

CONFIG, MAPPER = "captioner.json", "mapper.safetensors"
SETTINGS = {"clip": str, "prefix_length": int, "max_new_tokens": int}


class PrefixCaptioner(nn.Module):
    """CLIP's image embedding, through a small network, is what the language model reads first.

    Args:
        clip: a folder or hub id, of which the vision tower is used, frozen.
        language_model: a causal language model's folder or hub id.
        prefix_length: how many embeddings stand for the picture.
        max_new_tokens: of a caption.
    """

    def __init__(self, clip: str, language_model: str, prefix_length: int = 10, max_new_tokens: int = 80) -> None:
        super().__init__()
        if prefix_length < 1 or max_new_tokens < 1:
            raise UsageError("captioner.prefix_length and captioner.max_new_tokens must be at least 1")
        self.clip, self.prefix_length, self.max_new_tokens = clip, prefix_length, max_new_tokens
        self.name, self.prompt = language_model, None
        place = folder_or_id(language_model, "captioner.language_model")
        with loading(place, "captioner.language_model", "a causal language model of transformers"):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
            self.language_model: Any = AutoModelForCausalLM.from_pretrained(
                place, trust_remote_code=False, dtype=torch.float32
            )
        vision = load_pretrained(CLIPVisionModelWithProjection, clip, "CLIP")
        self.vision = vision.eval().requires_grad_(False)
        width = self.language_model.get_input_embeddings().embedding_dim
        hidden = width * prefix_length // 2
        features = vision.config.projection_dim
        self.mapper = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, width * prefix_length))

    @torch.no_grad()
    def embed(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "batch features"]:
        """CLIP's embeddings of the pictures, of norm 1."""
        pixels = [clip_pixels(from_pil(picture)[None], self.vision.config.image_size) for picture in pictures]
        embeds = self.vision(torch.cat(pixels).to(self.vision.device)).image_embeds
        return nn.functional.normalize(embeds, dim=-1)

    def prefix(self, embeds: Float[Tensor, "batch features"]) -> Float[Tensor, "batch prefix width"]:
        return self.mapper(embeds).unflatten(-1, (self.prefix_length, -1))

    def loss(self, embeds: Float[Tensor, "batch features"], captions: Sequence[str]) -> Float[Tensor, ""]:
        """Cross-entropy of the captions' tokens and of their end."""
        end = self.tokenizer.eos_token_id
        ids = [torch.tensor([*self._ids(caption), end]) for caption in captions]
        tokens = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-100).to(embeds.device)
        words = self.language_model.get_input_embeddings()(tokens.clamp(min=0))
        inputs = torch.cat([self.prefix(embeds), words], 1)
        logits = self.language_model(inputs_embeds=inputs).logits[:, self.prefix_length - 1 : -1]
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), ignore_index=-100)

    def _ids(self, caption: str) -> list[int]:
        """Cut off here: the tokenizer would remember that it did, and a resumed training's would not."""
        return self.tokenizer(caption, add_special_tokens=False, verbose=False).input_ids[: self.max_new_tokens - 1]

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        """A caption for each picture, greedy; an empty one where the model says nothing."""
        prefix = self.prefix(self.embed(pictures).to(self.language_model.device))
        end = self.tokenizer.eos_token_id
        written = self.language_model.generate(
            inputs_embeds=prefix,
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            pad_token_id=end,
            eos_token_id=end,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]

    def save(self, folder: Path) -> None:
        """Write the language model, its tokenizer and the mapper, but only the path of CLIP."""
        with replacing_folder(folder) as partial:
            self.language_model.save_pretrained(partial / "language_model")
            self.tokenizer.save_pretrained(partial / "language_model")
            state = {key: value.cpu().contiguous() for key, value in self.mapper.state_dict().items()}
            save_file(state, partial / MAPPER)
            settings = {"clip": self.clip, "prefix_length": self.prefix_length, "max_new_tokens": self.max_new_tokens}
            write_json(partial / CONFIG, settings)

    @classmethod
    def load(cls, path: str, style: str | None = None, device: str = "cpu") -> PrefixCaptioner:
        """Read what `save` wrote.

        Args:
            path: the folder, or with a style that of the run whose stage of this name is meant.
        """
        folder = Path(path).expanduser() / (style or "")
        if not (folder / CONFIG).exists():
            raise UsageError(f"{folder} holds no {CONFIG}: give the folder that train-captioner wrote")
        check_confined(folder)
        settings = shaped(folder / CONFIG, read_json(folder / CONFIG), SETTINGS)
        captioner = cls(language_model=str(folder / "language_model"), **settings)
        captioner.mapper.load_state_dict(load_file(folder / MAPPER))
        captioner.name = str(folder)
        return captioner.to(device).eval().requires_grad_(False)
