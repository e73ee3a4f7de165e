"""HPSv3 (Ma et al. 2025): Qwen2-VL reads a rubric and the prompt, looks at the picture, and rates it by one token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLModel

from textcraftor.assets import folder_or_id, loading
from textcraftor.rewards.base import Reward
from textcraftor.rewards.checkpoints import build, load_state, require_keys
from textcraftor.rewards.image_text import ImageText, QwenVL, load_language

LAYOUT = "HPSv3's layout (visual.*, model.*, rm_head.*)"
MESSAGE = Path(__file__).with_name("hpsv3_message.txt")  # as published (MIT licence), with {text_prompt} in it
TOKEN = "<|Reward|>"  # added to Qwen2-VL's vocabulary
PIXELS = 256 * 28 * 28  # of every picture, as closely as its shape allows
WIDTHS = (1024, 16, 2)  # of the head


class SinglePrecision(nn.Sequential):
    """Layers that stay in float32 where the rest of a model goes to half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SinglePrecision:
        def at_least_single(tensor: Tensor) -> Tensor:
            moved = fn(tensor.new_empty(0))
            return tensor.to(moved.device, torch.promote_types(moved.dtype, torch.float32))

        return super()._apply(at_least_single, recurse)


def new_head(width: int) -> SinglePrecision:
    """From the token's state to the mean and the log standard deviation of its rating, by the published key names."""
    inner, narrow, out = WIDTHS
    return SinglePrecision(
        nn.Linear(width, inner), nn.ReLU(), nn.Dropout(0.05), nn.Linear(inner, narrow), nn.ReLU(),
        nn.Linear(narrow, out),
    )  # fmt: skip


class HPSv3(Reward):
    """The mean of the published rating: unbounded, higher is better.

    Args:
        reader: Qwen2-VL without its language head, and a tokenizer that knows `TOKEN`.
        head: see `new_head`.
    """

    def __init__(self, reader: ImageText, head: nn.Module) -> None:
        super().__init__()
        self.reader, self.head = reader, head
        self.message = MESSAGE.read_text(encoding="utf-8")
        self.token = reader.tokenizer.convert_tokens_to_ids(TOKEN)
        self.freeze()

    @classmethod
    def load(cls, checkpoint: str, processor: str) -> HPSv3:
        """Load the published checkpoint in its own precision, and what Qwen2-VL's folder holds beside its weights.

        Args:
            checkpoint: `HPSv3.safetensors`: a local file, `hf://owner/repo/file` or an address.
            processor: folder or hub id of the Qwen2-VL that it was trained from.
        """
        state = load_state(checkpoint, "HPSv3 checkpoint")
        require_keys(state, ["model.embed_tokens.weight"], checkpoint, LAYOUT)
        place = folder_or_id(processor, "HPSv3 processor")
        with loading(place, "HPSv3 processor", "a folder of Qwen2-VL"):
            config = Qwen2VLConfig.from_pretrained(place)
        config.text_config.vocab_size = len(state["model.embed_tokens.weight"])
        tokenizer, processing = load_language(place)
        tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]})
        weights = {
            key.replace("model.", "language_model.", 1): value
            for key, value in state.items()
            if key.startswith(("visual.", "model."))
        }
        rating = {key.removeprefix("rm_head."): value for key, value in state.items() if key.startswith("rm_head.")}
        return cls(
            QwenVL(
                build(lambda: Qwen2VLModel(config), weights, checkpoint, LAYOUT, dtype=None),
                tokenizer,
                processing | {"min_pixels": PIXELS, "max_pixels": PIXELS},
            ),
            build(lambda: new_head(config.text_config.hidden_size), rating, checkpoint, LAYOUT),
        )

    def check(self, prompts: Sequence[str]) -> None:
        self.reader.check(prompts)

    def judge(self, seen: Mapping[str, Tensor], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Scores of what `reader.look` made of pictures."""
        self.check(prompts)
        given = self.reader.inputs(seen, [self.message.format(text_prompt=prompt) for prompt in prompts])
        # As published: tokens are counted one by one, those of the picture too, not by Qwen2-VL's rows and columns.
        places = torch.arange(given["input_ids"].shape[1], device=given["input_ids"].device)
        given["position_ids"] = places.expand(3, len(prompts), -1)
        states = self.reader.model(**given, use_cache=False).last_hidden_state
        rated = states[given["input_ids"] == self.token]
        return self.head(rated.to(next(self.head.parameters()).dtype))[:, 0]

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        return self.judge(self.reader.look(images), prompts).to(images.dtype)
