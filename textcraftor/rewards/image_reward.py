"""ImageReward (Xu et al. 2023): BLIP reads the prompt while it looks at the picture, an MLP says how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from textcraftor.assets import local_file
from textcraftor.rewards.aesthetic import LinearHead
from textcraftor.rewards.base import Reward
from textcraftor.rewards.checkpoints import build, load_state, require_keys
from textcraftor.rewards.preprocessing import clip_pixels
from textcraftor.rewards.text import Cache, PromptTokenizer, load_tokenizer

LAYOUT = "ImageReward's layout (blip.visual_encoder.*, blip.text_encoder.*, mlp.layers.*)"
VISION, TEXT = "blip.visual_encoder.", "blip.text_encoder."
HEAD_WIDTH = 64  # of the vision tower's attention, in every BLIP
CONTEXT = 35  # tokens of a prompt that are read
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the published model over its training data
_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_OUTER = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}


def vision_keys(layers: int) -> dict[str, str]:
    """transformers' name of every key of the published vision tower."""
    blocks = {
        f"blocks.{layer}.{old}.{part}": f"encoder.layers.{layer}.{new}.{part}"
        for layer in range(layers)
        for old, new in _BLOCK.items()
        for part in ("weight", "bias")
    }
    return _OUTER | blocks


def vision_config(state: Mapping[str, Tensor]) -> BlipVisionConfig:
    """The vision tower that the weights' shapes tell of."""
    width, _, patch, _ = state[f"{VISION}patch_embed.proj.weight"].shape
    side = round((state[f"{VISION}pos_embed"].shape[1] - 1) ** 0.5)
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(state[f"{VISION}blocks.0.mlp.fc1.bias"]),
        num_hidden_layers=sum(key.startswith(VISION) and key.endswith(".norm1.bias") for key in state),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=side * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
    )


def with_blip_tokens(tokenizer: BertTokenizer) -> BertTokenizer:
    """BERT's tokenizer with the two tokens that BLIP adds; a prompt that holds them literally gets them."""
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer


class ImageReward(Reward):
    """The published score: about normal over its training data, higher is better.

    The prompt is read as published: at most 35 tokens, the first one [CLS].

    Args:
        vision, text: BLIP's towers, the text tower with cross-attention.
        mlp: from the first token's state to a number.
    """

    def __init__(self, vision: BlipVisionModel, text: BlipTextModel, mlp: nn.Module, tokenizer: BertTokenizer) -> None:
        super().__init__()
        self.vision, self.text, self.mlp = vision, text, mlp
        self.tokenize = PromptTokenizer(tokenizer, CONTEXT)
        self.texts = Cache(lambda prompts: torch.stack(self.tokens(prompts), 1))
        self.freeze()

    @classmethod
    def load(cls, checkpoint: str, config: str, tokenizer: str) -> ImageReward:
        """Load `ImageReward.pt`, its `med_config.json` and the folder or hub id of BERT's tokenizer."""
        state = load_state(checkpoint, "ImageReward checkpoint")
        require_keys(state, [VISION + key for key in vision_keys(1)], checkpoint, LAYOUT)
        seen = vision_config(state)
        keys = vision_keys(seen.num_hidden_layers)
        require_keys(state, [VISION + key for key in keys], checkpoint, LAYOUT)
        med = json.loads(local_file(config, "ImageReward's med_config.json").read_text())
        read = BlipTextConfig.from_dict(med | {"encoder_hidden_size": seen.hidden_size, "is_decoder": True})
        texts = {key.removeprefix(TEXT): value for key, value in state.items() if key.startswith(TEXT)}
        head = {key.removeprefix("mlp."): value for key, value in state.items() if key.startswith("mlp.")}
        return cls(
            build(
                lambda: BlipVisionModel(seen),
                {new: state[VISION + old] for old, new in keys.items()},
                checkpoint,
                LAYOUT,
            ),
            build(lambda: BlipTextModel(read, add_pooling_layer=False), texts, checkpoint, f"{LAYOUT} and {config}"),
            LinearHead.of(head, checkpoint, LAYOUT),
            with_blip_tokens(load_tokenizer(BertTokenizer, tokenizer)),
        )

    def published_state(self) -> dict[str, Tensor]:
        """The weights by the published key names: what `load` reads."""
        vision = self.vision.state_dict()
        keys = vision_keys(self.vision.config.num_hidden_layers)
        return (
            {VISION + old: vision[new] for old, new in keys.items()}
            | {TEXT + key: value for key, value in self.text.state_dict().items()}
            | {f"mlp.{key}": value for key, value in self.mlp.state_dict().items()}
        )

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, int (batch, 35) each."""
        tokens = self.tokenize(prompts)
        return tokens.input_ids, tokens.attention_mask

    def pixels(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 size size"]:
        """The published preprocessing."""
        return clip_pixels(images, self.vision.config.image_size)

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, " batch"]:
        """Scores of preprocessed pictures."""
        return self.judge(self.look(pixels), prompts).to(pixels.dtype)

    def look(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch patches features"]:
        """What the vision tower sees, the first token for the whole picture."""
        return self.vision(pixels.to(self.vision.dtype)).last_hidden_state

    def judge(self, seen: Float[Tensor, "batch patches features"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Scores of what the vision tower saw."""
        return (self.mlp(self.read(seen, prompts)).squeeze(-1) - MEAN) / STD

    def read(
        self, seen: Float[Tensor, "batch patches features"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch states"]:
        """The first token's state after reading the prompts with an eye on what the vision tower saw."""
        ids, mask = self.texts(prompts).to(seen.device).unbind(1)
        return self.text(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
            is_decoder=False,
        ).last_hidden_state[:, 0]

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        return self.score_pixels(self.pixels(images), prompts)
