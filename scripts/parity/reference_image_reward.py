"""ImageReward as `image-reward` scores it (`score_gard`), on the CPU."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import torch
from PIL import Image
from torch import Tensor, nn

from parity.runner import Job, run, stub, without_torchvision_ops

without_torchvision_ops()
stub("clip")  # OpenAI's package: only the package's other scorers use it
stub("fairscale.nn.checkpoint.checkpoint_activations", checkpoint_wrapper=None)  # for training with little memory
stub("ImageReward.ReFL")  # its trainer: wants diffusers, accelerate and datasets
import transformers  # noqa: E402
from ImageReward.models.BLIP import blip, blip_pretrain  # noqa: E402
from ImageReward.models.BLIP.vit import VisionTransformer  # noqa: E402

package = import_module("ImageReward.ImageReward")  # the module: the package shows the class under this name


def small(sizes: dict[str, int]) -> None:
    """Make the package build small towers and a small head."""
    tower = {key: sizes[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
    blip_pretrain.create_vit = lambda *_: (VisionTransformer(**tower), sizes["embed_dim"])
    package.MLP = partial(lambda head, _: head(sizes["text_width"]), package.MLP)
    package._transform = partial(lambda transform, _: transform(sizes["img_size"]), package._transform)


def build(job: Job) -> nn.Module:
    published = transformers.BertTokenizer.from_pretrained
    blip.BertTokenizer = type("BertTokenizer", (), {"from_pretrained": lambda _: published(job["tokenizer"])})
    if "sizes" in job:
        small(job["sizes"])
    return package.ImageReward(med_config=job["config"], device="cpu")


class Reference:
    def __init__(self, job: Job) -> None:
        self.model = build(job)
        state = torch.load(job["checkpoint"], map_location="cpu")
        missing = self.model.load_state_dict(state, strict=False).missing_keys
        if set(missing) - {"blip.text_encoder.embeddings.position_ids"}:
            raise ValueError(f"{job['checkpoint']} lacks {missing}")
        self.model.eval().requires_grad_(False)

    def preprocess(self, picture: Image.Image) -> Tensor:
        return self.model.preprocess(picture)

    def tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        read = self.model.blip.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
        )
        return {"ids": read.input_ids, "mask": read.attention_mask}

    def read(self, prompts: list[str]) -> dict[str, Tensor]:
        return self.tokens(prompts)

    def score(self, pixels: Tensor, texts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"score": self.model.score_gard(texts["ids"], texts["mask"], pixels)[:, 0]}


def make(job: Job) -> None:
    """Its own initial weights; those of the head, which start near zero, as a linear layer's usually do."""
    model = build(job)
    for layer in model.mlp.layers:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    torch.save(model.state_dict(), job["checkpoint"])


if __name__ == "__main__":
    run(make, Reference)
