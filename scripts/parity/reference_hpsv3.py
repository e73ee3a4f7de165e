"""HPSv3 as `hpsv3` scores it (`HPSv3RewardInferencer`), on the CPU, its weights in single precision."""

from __future__ import annotations

import os

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from parity.runner import Job, nothing, run, stub, without_torchvision_ops

without_torchvision_ops()
import torchvision  # noqa: E402, F401
import transformers.trainer  # noqa: E402, F401
from transformers import AutoProcessor, Qwen2VLConfig, Qwen2VLForConditionalGeneration  # noqa: E402, F401

# Its trainer's needs.
for name in ("matplotlib", "matplotlib.pyplot", "matplotlib.patches", "datasets", "pandas"):
    stub(name)
stub("torch.utils.tensorboard", SummaryWriter=None)
stub("peft", PeftModel=None)
stub("trl", RewardTrainer=object)
stub("hpsv3.utils.training_utils", get_peft_state_non_lora_maybe_zero_3=None)
stub("hpsv3.train", create_model_and_processor=None)
stub("hpsv3.utils.parser", ModelConfig=None, PEFTLoraConfig=None, TrainingConfig=None, DataConfig=None,
     parse_args_with_yaml=None)  # fmt: skip
from hpsv3.inference import HPSv3RewardInferencer  # noqa: E402
from hpsv3.model.qwen2vl_trainer import Qwen2VLRewardModelBT  # noqa: E402

TOKENS = ["<|Reward|>"]


class Reference:
    """Scores know their picture by the number of its prompt: a picture's shape decides how many tokens stand for it."""

    def __init__(self, job: Job) -> None:
        processor = AutoProcessor.from_pretrained(job["folder"], padding_side="right")
        processor.tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})
        state = load_file(os.path.join(job["folder"], "HPSv3.safetensors"))
        config = Qwen2VLConfig.from_pretrained(job["folder"], vocab_size=len(state["model.embed_tokens.weight"]))
        config.pad_token_id = processor.tokenizer.pad_token_id
        ids = processor.tokenizer.convert_tokens_to_ids(TOKENS)
        model = Qwen2VLRewardModelBT(
            config, output_dim=2, reward_token="special", special_token_ids=ids, rm_head_type="ranknet"
        )
        model.load_state_dict(state, strict=True)
        self.inferencer = HPSv3RewardInferencer.__new__(HPSv3RewardInferencer)
        self.inferencer.processor, self.inferencer.model = processor, model.eval().requires_grad_(False)
        self.inferencer.use_special_tokens, self.inferencer.device = True, "cpu"
        self.prompts, self.pictures = job["prompts"], [Image.open(path) for path in job["pictures"]]

    def preprocess(self, picture: Image.Image) -> Tensor:
        return self.inferencer.prepare_batch([picture], ["a"])["pixel_values"]

    def tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        return {}

    def read(self, prompts: list[str]) -> dict[str, Tensor]:
        return {"number": torch.arange(len(prompts))}

    def score(self, pixels: Tensor, texts: dict[str, Tensor]) -> dict[str, Tensor]:
        number = int(texts["number"])
        batch = self.inferencer.prepare_batch([self.pictures[number]], [self.prompts[number]])
        batch["pixel_values"] = pixels[0]
        return {"score": self.inferencer.model(return_dict=True, **batch)["logits"][:, 0]}


if __name__ == "__main__":
    run(nothing, Reference)
