"""PickScore by its published usage, `AutoProcessor` and `AutoModel`; and any other CLIP folder in the same way."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from parity.runner import Job, run, without_torchvision_ops

without_torchvision_ops()
from transformers import (  # noqa: E402
    AutoModel,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizerFast,
)


class Reference:
    def __init__(self, job: Job) -> None:
        self.processor = AutoProcessor.from_pretrained(job["folder"])
        self.model = AutoModel.from_pretrained(job["folder"], torch_dtype=torch.float32).eval().requires_grad_(False)
        self.scale = self.model.logit_scale.exp() if job["scaled"] else 1.0
        self.context = self.model.config.text_config.max_position_embeddings

    def preprocess(self, picture: Image.Image) -> Tensor:
        return self.processor(
            images=picture, padding=True, truncation=True, max_length=self.context, return_tensors="pt"
        )["pixel_values"][0]

    def inputs(self, prompts: list[str]) -> dict[str, Tensor]:
        return self.processor(text=prompts, padding=True, truncation=True, max_length=self.context, return_tensors="pt")

    def tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        """Padded to the longest prompt, as published: one that fills the context is among them."""
        return {"ids": self.inputs(prompts)["input_ids"]}

    def read(self, prompts: list[str]) -> dict[str, Tensor]:
        features = self.model.get_text_features(**self.inputs(prompts))
        return {"text_features": features / torch.norm(features, dim=-1, keepdim=True)}

    def score(self, pixels: Tensor, texts: dict[str, Tensor]) -> dict[str, Tensor]:
        features = self.model.get_image_features(pixel_values=pixels)
        features = features / torch.norm(features, dim=-1, keepdim=True)
        scores = self.scale * (texts["text_features"] @ features.T)
        return {"score": scores.diagonal(), "image_features": features}


def make(job: Job) -> None:
    """A folder as published: config, weights, tokenizer and image processor."""
    folder, source = Path(job["folder"]), Path(job["tokenizer"])
    shutil.rmtree(folder, ignore_errors=True)
    model = CLIPModel(CLIPConfig(**job["config"]))
    if "weights" in job:
        model.load_state_dict(torch.load(job["weights"], weights_only=True))
    model.save_pretrained(folder)
    tokenizer = CLIPTokenizerFast(
        vocab_file=str(source / "vocab.json"),
        merges_file=str(source / "merges.txt"),
        model_max_length=job["config"]["text_config"].get("max_position_embeddings", 77),
    )
    size = job["config"]["vision_config"].get("image_size", 224)
    images = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)


if __name__ == "__main__":
    run(make, Reference)
