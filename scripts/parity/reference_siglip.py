"""SigLIP by `AutoModel` of transformers, and Aesthetic Predictor V2.5 as its package scores with it."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from parity.runner import Job, nothing, run, without_torchvision_ops

without_torchvision_ops()
from aesthetic_predictor_v2_5 import convert_v2_5_from_siglip  # noqa: E402
from transformers import AutoModel, AutoTokenizer, SiglipImageProcessor  # noqa: E402


class Similarity:
    def __init__(self, job: Job) -> None:
        self.processor = SiglipImageProcessor.from_pretrained(job["folder"])
        self.tokenizer = AutoTokenizer.from_pretrained(job["folder"])
        self.model = AutoModel.from_pretrained(job["folder"], torch_dtype=torch.float32).eval().requires_grad_(False)
        self.context = self.model.config.text_config.max_position_embeddings

    def preprocess(self, picture: Image.Image) -> Tensor:
        return self.processor(picture, return_tensors="pt")["pixel_values"][0]

    def tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        read = self.tokenizer(
            prompts, padding="max_length", max_length=self.context, truncation=True, return_tensors="pt"
        )
        return {"ids": read.input_ids}

    def read(self, prompts: list[str]) -> dict[str, Tensor]:
        features = self.model.get_text_features(self.tokens(prompts)["ids"])
        return {"text_features": features / features.norm(dim=-1, keepdim=True)}

    def score(self, pixels: Tensor, texts: dict[str, Tensor]) -> dict[str, Tensor]:
        features = self.model.get_image_features(pixel_values=pixels)
        features = features / features.norm(dim=-1, keepdim=True)
        return {"score": (features * texts["text_features"]).sum(-1), "image_features": features}


class Aesthetic:
    def __init__(self, job: Job) -> None:
        self.model, self.processor = convert_v2_5_from_siglip(job["head"], job["folder"], torch_dtype=torch.float32)
        self.model.eval().requires_grad_(False)

    def preprocess(self, picture: Image.Image) -> Tensor:
        return self.processor(images=picture, return_tensors="pt").pixel_values[0]

    def tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        return {}

    def read(self, prompts: list[str]) -> dict[str, Tensor]:
        return {"none": torch.zeros(len(prompts))}

    def score(self, pixels: Tensor, texts: dict[str, Tensor]) -> dict[str, Tensor]:
        seen = self.model(pixels, return_dict=True)
        features = seen.hidden_states / seen.hidden_states.norm(dim=-1, keepdim=True)
        return {"score": seen.logits[:, 0], "image_features": features}


if __name__ == "__main__":
    run(nothing, lambda job: Aesthetic(job) if "head" in job else Similarity(job))
