"""CLIP as `open_clip` runs it, OpenAI's flavour included, and LAION's aesthetic heads on top of it."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

from parity.runner import Job, run, save_half, without_torchvision_ops

without_torchvision_ops()
import open_clip  # noqa: E402
from open_clip.tokenizer import SimpleTokenizer  # noqa: E402
from open_clip.transform import image_transform  # noqa: E402


def build(job: Job) -> tuple[open_clip.CLIP, object]:
    if "architecture" in job:
        model = open_clip.CLIP(**job["architecture"])
        return model, image_transform(job["architecture"]["vision_cfg"]["image_size"], is_train=False)
    model, _, preprocess = open_clip.create_model_and_transforms(job["name"], None)
    return model, preprocess


def aesthetic_head(path: str) -> nn.Module:
    """LAION's predictors as published: v1 one linear layer, v2 five with dropout between and no activations."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if "weight" in state:
        head: nn.Module = nn.Linear(state["weight"].shape[1], 1)
    else:
        widths = [state["layers.0.weight"].shape[1], *(len(state[f"layers.{i}.bias"]) for i in (0, 2, 4, 6, 7))]
        layers: list[nn.Module] = []
        for index, rate in enumerate((0.2, 0.2, 0.1, None, None)):
            layers.append(nn.Linear(widths[index], widths[index + 1]))
            layers += [nn.Dropout(rate)] if rate else []
        head = nn.Module()
        head.layers = nn.Sequential(*layers)
        head.forward = head.layers.forward
    head.load_state_dict(state)
    return head.eval().requires_grad_(False)


class Reference:
    def __init__(self, job: Job) -> None:
        self.model, self.transform = build(job)
        self.model.load_state_dict(torch.load(job["checkpoint"], map_location="cpu")["state_dict"])
        self.model.eval().requires_grad_(False)
        context = self.model.positional_embedding.shape[0]
        self.tokenizer = SimpleTokenizer(**({"bpe_path": job["bpe"]} if "bpe" in job else {}), context_length=context)
        self.head = aesthetic_head(job["head"]) if "head" in job else None

    def preprocess(self, picture: Image.Image) -> Tensor:
        return self.transform(picture)

    def tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        return {} if self.head else {"ids": self.tokenizer(prompts)}

    def read(self, prompts: list[str]) -> dict[str, Tensor]:
        if self.head:
            return {"none": torch.zeros(len(prompts))}
        return {"text_features": self.model.encode_text(self.tokenizer(prompts), normalize=True)}

    def score(self, pixels: Tensor, texts: dict[str, Tensor]) -> dict[str, Tensor]:
        features = self.model.encode_image(pixels, normalize=True)
        if self.head:
            return {"score": self.head(features)[:, 0], "image_features": features}
        return {"score": (features * texts["text_features"]).sum(-1), "image_features": features}


def make(job: Job) -> None:
    model, _ = build(job)
    save_half(model.state_dict(), job["checkpoint"])


if __name__ == "__main__":
    run(make, Reference)
