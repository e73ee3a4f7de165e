"""HPSv2 as `hpsv2` scores it (`img_score.py`), on the CPU in single precision."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from parity.runner import Job, run, save_half, stub, without_torchvision_ops

without_torchvision_ops()
stub("turtle", forward=None)  # imported by accident: needs a display's libraries
from hpsv2.src.open_clip import create_model_and_transforms, tokenizer  # noqa: E402
from hpsv2.src.open_clip.model import CLIP  # noqa: E402
from hpsv2.src.open_clip.transform import image_transform  # noqa: E402


def build(job: Job) -> tuple[CLIP, object]:
    """The model and its preprocessing, made as `img_score.initialize_model` makes them."""
    if "architecture" in job:
        model = CLIP(**job["architecture"], output_dict=True)
        # Not the default of image_transform, but what light_augmentation below asks for: black borders, no crop.
        side = job["architecture"]["vision_cfg"]["image_size"]
        return model, image_transform(side, is_train=False, resize_longest_max=True)
    model, _, preprocess = create_model_and_transforms(
        "ViT-H-14", None, precision="amp", device="cpu", light_augmentation=True, aug_cfg={}, output_dict=True
    )
    return model, preprocess


class Reference:
    def __init__(self, job: Job) -> None:
        self.model, self.transform = build(job)
        self.model.load_state_dict(torch.load(job["checkpoint"], map_location="cpu")["state_dict"])
        self.model.eval().requires_grad_(False)
        if "bpe" in job:
            tokenizer._tokenizer = tokenizer.SimpleTokenizer(job["bpe"])
        self.context = self.model.positional_embedding.shape[0]

    def preprocess(self, picture: Image.Image) -> Tensor:
        return self.transform(picture)

    def tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        return {"ids": tokenizer.tokenize(prompts, self.context)}

    def read(self, prompts: list[str]) -> dict[str, Tensor]:
        ids = self.tokens(prompts)["ids"]
        return {"ids": ids, "text_features": self.model.encode_text(ids, normalize=True)}

    def score(self, pixels: Tensor, texts: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = self.model(pixels, texts["ids"])
        logits = outputs["image_features"] @ outputs["text_features"].T
        return {"score": torch.diagonal(logits), "image_features": outputs["image_features"]}


def make(job: Job) -> None:
    model, _ = build(job)
    save_half(model.state_dict(), job["checkpoint"])


if __name__ == "__main__":
    run(make, Reference)
