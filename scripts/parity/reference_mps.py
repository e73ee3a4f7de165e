"""MPS by its authors' own evaluation script, in single precision and with gradients.

Their repository, Kwai-Kolors/MPS, is no package: `source` of the job is a clone of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from parity.runner import Job, nothing, run, stub, without_torchvision_ops

without_torchvision_ops()
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTokenizerFast  # noqa: E402

for name in ("cv2", "matplotlib", "matplotlib.pyplot"):
    stub(name)
stub("fire", Fire=None)


def published_script() -> Callable[..., Tensor]:
    """What scores one picture; the script forbids gradients and computes in half precision, which is undone here."""
    torch.no_grad, Tensor.half = torch.enable_grad, Tensor.float
    from eval_overall_mps_on_hpdv2 import infer_one_sample

    return infer_one_sample


class Reference:
    def __init__(self, job: Job) -> None:
        sys.path.insert(0, job["source"])
        from trainer.models.clip_model import CLIPModel as PublishedMPS
        from trainer.models.clip_model import XCLIPModel
        from trainer.models.cross_modeling import Cross_model

        config = CLIPConfig(**json.loads(Path(job["config"]).read_text()))
        self.model = PublishedMPS.__new__(PublishedMPS)
        nn.Module.__init__(self.model)
        self.model.model = XCLIPModel(config)
        width = config.projection_dim
        self.model.cross_model = Cross_model(dim=width, layer_num=4, heads=width // 64)
        missing = self.model.load_state_dict(load_file(job["checkpoint"]), strict=False).missing_keys
        if [key for key in missing if "position_ids" not in key]:
            raise ValueError(f"{job['checkpoint']} lacks {missing}")
        self.model.eval().requires_grad_(False)
        self.infer, self.condition = published_script(), job["condition"]
        self.tokenizer = CLIPTokenizerFast.from_pretrained(job["tokenizer"])
        size = config.vision_config.image_size
        self.processor = CLIPImageProcessor(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}, do_convert_rgb=True
        )

    def preprocess(self, picture: Image.Image) -> Tensor:
        return self.processor(picture, return_tensors="pt")["pixel_values"][0]

    def tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        length = self.tokenizer.model_max_length
        read = self.tokenizer(prompts, max_length=length, padding="max_length", truncation=True, return_tensors="pt")
        return {"ids": read.input_ids}

    def read(self, prompts: list[str]) -> dict[str, Tensor]:
        return self.tokens(prompts)

    def score(self, pixels: Tensor, texts: dict[str, Tensor]) -> dict[str, Tensor]:
        def tokenize(text: str | Tensor, **_: object) -> SimpleNamespace:
            return SimpleNamespace(input_ids=text if isinstance(text, Tensor) else self.tokens([text])["ids"])

        tokenize.model_max_length = self.tokenizer.model_max_length
        picture = Image.new("RGB", (1, 1))  # is preprocessed already
        seen = lambda *_, **__: {"pixel_values": pixels}  # noqa: E731
        score = self.infer(picture, texts["ids"], self.model, seen, tokenize, "cpu", self.condition)
        return {"score": score}


if __name__ == "__main__":
    run(nothing, Reference)
