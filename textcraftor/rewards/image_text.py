"""Image-text-to-text models of transformers that a gradient in the pixels can pass through.

transformers' own image processors leave torch; here the published preprocessing is done in torch, family by family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from textcraftor.assets import folder_or_id
from textcraftor.errors import UsageError
from textcraftor.rewards.checkpoints import load_pretrained, model_type, read_settings
from textcraftor.rewards.preprocessing import (
    IMAGENET_STANDARD_MEAN,
    MODES,
    OPENAI_CLIP_MEAN,
    clip_pixels,
    normalize,
    resize,
    squeezed_pixels,
)
from textcraftor.rewards.text import load_tokenizer

WHAT = "image-text model"


class ImageText(nn.Module):
    """A frozen model that looks at a picture and reads a message about it.

    Args:
        model: its `config` names the token that stands for a picture.
        tokenizer: its tokenizer, with a chat template.
        processing: the published `preprocessor_config.json`.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, processing: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.processing = model, tokenizer, processing
        self.reserved = {*tokenizer.added_tokens_encoder, *tokenizer.all_special_tokens}
        self.eval().requires_grad_(False)

    def look(self, images: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
        """What the model takes of pictures in [0, 1], by its own argument names: the published preprocessing."""
        raise NotImplementedError

    def places(self, seen: Mapping[str, Tensor]) -> int:
        """How many tokens stand for one picture."""
        raise NotImplementedError

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse a prompt with a token in it that means something else than its letters to the model."""
        for prompt in prompts:
            for token in self.reserved:
                if token in prompt:
                    raise UsageError(
                        f"prompt {prompt!r} holds {token!r}, a sign of the model's own: write it otherwise"
                    )

    def tokens(
        self, messages: Sequence[str], places: int
    ) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
        """Token ids and attention mask of a picture and a message each in the model's chat template, which ends where
        the answer begins; shorter ones are padded on the left."""
        picture = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)
        texts = []
        for message in messages:
            content = [{"type": "image"}, {"type": "text", "text": message}]
            turns = [{"role": "user", "content": content}]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            texts.append(text.replace(picture, picture * places, 1))
        begun = self.tokenizer.bos_token is not None and texts[0].startswith(self.tokenizer.bos_token)
        read = self.tokenizer(
            texts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=not begun
        )
        return read.input_ids, read.attention_mask

    def inputs(self, seen: Mapping[str, Tensor], messages: Sequence[str]) -> dict[str, Tensor]:
        """All that the model takes of pictures that were looked at and a message each, on its device."""
        ids, mask = self.tokens(messages, self.places(seen))
        given = {**seen, "pixel_values": seen["pixel_values"].to(self.model.dtype)}
        given |= {"input_ids": ids, "attention_mask": mask}
        return {name: value.to(self.model.device) for name, value in given.items()}


class QwenVL(ImageText):
    """Qwen2-VL (Wang et al. 2024), Qwen2.5-VL and Qwen3-VL: pictures of any shape, as patches in a row."""

    def look(self, images: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
        settings = self.processing
        patch, merge = settings["patch_size"], settings["merge_size"]
        height, width = smart_resize(*images.shape[-2:], patch * merge, *self.limits())
        pixels = normalize(
            resize(images, height, width, MODES[settings.get("resample", 3)]),
            settings["image_mean"],
            settings["image_std"],
        )
        grid = torch.tensor([[1, height // patch, width // patch]] * len(images))
        return {"pixel_values": patches(pixels, patch, merge, settings["temporal_patch_size"]), "image_grid_thw": grid}

    def limits(self) -> tuple[int, int]:
        """The least and the most pixels of a picture; older files name them otherwise."""
        defaults = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
        size = defaults | (self.processing.get("size") or {}) | dict(self.processing)
        return size.get("min_pixels") or size["shortest_edge"], size.get("max_pixels") or size["longest_edge"]

    def places(self, seen: Mapping[str, Tensor]) -> int:
        return int(seen["image_grid_thw"][0].prod()) // self.processing["merge_size"] ** 2

    def inputs(self, seen: Mapping[str, Tensor], messages: Sequence[str]) -> dict[str, Tensor]:
        given = super().inputs(seen, messages)
        return given | {"mm_token_type_ids": (given["input_ids"] == self.model.config.image_token_id).int()}


def patches(
    pixels: Float[Tensor, "batch 3 height width"], patch: int, merge: int, frames: int
) -> Float[Tensor, "patches values"]:
    """Qwen2-VL's order: the patches of each `merge` x `merge` block together, a still picture `frames` times."""
    batch, channels, height, width = pixels.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    cut = pixels.reshape(batch, channels, rows, merge, patch, columns, merge, patch)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(*[-1] * 6, frames, -1, -1)
    return cut.reshape(batch * rows * columns * merge**2, channels * frames * patch**2)


class Llava(ImageText):
    """LLaVA (Liu et al. 2023) and models of its layout, on CLIP or SigLIP."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, processing: Mapping[str, Any]
    ) -> None:
        super().__init__(model, tokenizer, processing)
        self.tower = model.config.vision_config
        means = {"clip_vision_model": OPENAI_CLIP_MEAN, "siglip_vision_model": IMAGENET_STANDARD_MEAN}
        mean = means.get(self.tower.model_type)
        if processing.get("do_pad") or mean is None or not close(processing.get("image_mean", mean), mean):
            raise UsageError(
                f"{WHAT}: a LLaVA on {self.tower.model_type} with image_mean {processing.get('image_mean')} and do_pad "
                f"{bool(processing.get('do_pad'))} is not supported: take one on CLIP or SigLIP with that model's own "
                "preprocessing, such as llava-hf/llava-1.5-7b-hf"
            )

    def look(self, images: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
        size = self.tower.image_size
        clip = self.tower.model_type == "clip_vision_model"
        return {"pixel_values": clip_pixels(images, size, floor_crop=True) if clip else squeezed_pixels(images, size)}

    def places(self, seen: Mapping[str, Tensor]) -> int:
        """Its patches, and CLIP's token for the whole picture unless the model leaves that out."""
        whole = self.tower.model_type == "clip_vision_model"
        dropped = self.model.config.vision_feature_select_strategy == "default"
        return (self.tower.image_size // self.tower.patch_size) ** 2 + whole - dropped


def close(some: Sequence[float], others: Sequence[float]) -> bool:
    return all(abs(one - other) < 1e-4 for one, other in zip(some, others, strict=True))


# By the `model_type` of a folder's config.json: how it takes pictures, and its model.
FAMILIES: dict[str, tuple[type[ImageText], type[PreTrainedModel]]] = {
    "qwen2_vl": (QwenVL, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (QwenVL, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (QwenVL, Qwen3VLForConditionalGeneration),
    "llava": (Llava, LlavaForConditionalGeneration),
}


def load_language(path: str) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    """The tokenizer of a folder or hub id, with its chat template, and its `preprocessor_config.json`.

    Raises:
        UsageError: one of them is not there.
    """
    tokenizer = load_tokenizer(AutoTokenizer, path)
    if tokenizer.chat_template is None:  # older folders keep it in a file of its own
        tokenizer.chat_template = read_settings(path, "chat_template.json", WHAT).get("chat_template")
    return tokenizer, read_settings(path, "preprocessor_config.json", WHAT)


def load_image_text(path: str) -> ImageText:
    """Load a model in its own precision from a folder or hub id; its `config.json` says of which family it is.

    Raises:
        UsageError: no such folder, a family whose preprocessing is not known here, or a damaged file.
    """
    path = folder_or_id(path, WHAT)
    family = model_type(path, WHAT)
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UsageError(
            f"{WHAT} {path}: model_type {family!r} has no differentiable preprocessing: use one of {known}"
        )
    reader, model = FAMILIES[family]
    tokenizer, processing = load_language(path)
    return reader(load_pretrained(model, path, WHAT, dtype="auto"), tokenizer, processing)
