"""MPS (Zhang et al. 2024): a CLIP whose image tokens look at the words of the prompt that a condition picks out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention, silu
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from textcraftor.errors import UsageError
from textcraftor.rewards.base import Reward
from textcraftor.rewards.checkpoints import build, load_state
from textcraftor.rewards.open_clip import architecture_config
from textcraftor.rewards.preprocessing import clip_pixels
from textcraftor.rewards.text import Cache, PromptTokenizer, load_tokenizer

LAYOUT = "MPS's layout (model.*, cross_model.layers.*)"
LAYERS, HEAD_WIDTH = 4, 64  # of the published cross-attention; it has as many heads as its width holds
KEPT_PROMPTS = 1000  # in the cache: a prompt's tokens are 300 kB


class SwiGLU(nn.Module):
    """The first half of the features, gated by the second (Shazeer 2020)."""

    def forward(self, x: Float[Tensor, "*batch two_widths"]) -> Float[Tensor, "*batch width"]:
        value, gate = x.chunk(2, dim=-1)
        return value * silu(gate)


def attend(
    queries: Float[Tensor, "batch n width"],
    keys: Float[Tensor, "batch heads m head"],
    values: Float[Tensor, "batch heads m head"],
    kept: Bool[Tensor, "batch m"] | None = None,
) -> Float[Tensor, "batch n width"]:
    """Attention of many heads on the same keys and values (Shazeer 2019); those not `kept` are not seen."""
    mask = None if kept is None else kept[:, None, None]
    split = queries.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)
    heads = split.shape[1]
    seen = scaled_dot_product_attention(
        split, keys.expand(-1, heads, -1, -1), values.expand(-1, heads, -1, -1), attn_mask=mask
    )
    return seen.transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Image tokens look at text tokens, beside a feed-forward network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * HEAD_WIDTH, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 8 * width, bias=False), SwiGLU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(
        self, x: Float[Tensor, "batch n width"], text: Float[Tensor, "batch m width"], kept: Bool[Tensor, "batch m"]
    ) -> Float[Tensor, "batch n width"]:
        normed = self.norm(x)
        keys, values = self.to_kv(text)[:, None].chunk(2, dim=-1)
        return x + self.to_out(attend(self.to_q(normed), keys, values, kept)) + self.ff(normed)


class Rotary(nn.Module):
    """Angles of rotary positions (Su et al. 2021)."""

    inv_freq: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH))

    def forward(self, length: int) -> Float[Tensor, "1 length head"]:
        places = torch.arange(length, device=self.inv_freq.device, dtype=self.inv_freq.dtype)
        return places.outer(self.inv_freq).repeat(1, 2)[None]


class SelfAttention(nn.Module):
    """Image tokens look at one another, beside a feed-forward network, with rotary positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widths = (width, HEAD_WIDTH, HEAD_WIDTH, 8 * width)
        self.norm = nn.LayerNorm(width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.widths), bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(4 * width, width, bias=False))
        self.rotary_emb = Rotary()

    def forward(self, x: Float[Tensor, "batch n width"]) -> Float[Tensor, "batch n width"]:
        queries, keys, values, inner = self.fused_attn_ff_proj(self.norm(x)).split(self.widths, dim=-1)
        angles = self.rotary_emb(x.shape[1])
        heads = queries.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)
        heads, keys = apply_rotary_pos_emb(heads, keys[:, None], angles.cos(), angles.sin())
        seen = attend(heads.transpose(1, 2).flatten(2), keys, values[:, None])
        return x + self.attn_out(seen) + self.ff_out(inner)


class CrossModel(nn.Module):
    """Layers of cross-attention and self-attention in turn."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([CrossAttention(width), SelfAttention(width)]) for _ in range(layers))

    def forward(
        self, x: Float[Tensor, "batch n width"], text: Float[Tensor, "batch m width"], kept: Bool[Tensor, "batch m"]
    ) -> Float[Tensor, "batch n width"]:
        for layer in self.layers:
            across, within = layer.children()
            x = within(across(x, text, kept))
        return x


class MPS(Reward):
    """exp(logit scale) times the cosine of the prompt and of what the picture's class token saw of it (section 3.3).

    Args:
        clip: the CLIP that it was trained from.
        cross: a `CrossModel`.
        condition: words for what is judged; text tokens that are like none of them are not looked at.
        threshold: how like, as a share of the likest token's likeness.
    """

    def __init__(
        self, clip: CLIPModel, cross: nn.Module, tokenizer: CLIPTokenizer, condition: str, threshold: float
    ) -> None:
        super().__init__()
        if not condition.strip():
            raise UsageError(
                f"condition={condition!r} is empty: name what is to be judged, such as light, color, shape"
            )
        if not 0 <= threshold < 1:
            raise UsageError(f"threshold={threshold} must lie in [0, 1): it is a share of the likest token's likeness")
        self.clip, self.cross, self.condition, self.threshold = clip, cross, condition, threshold
        self.tokenize = PromptTokenizer(tokenizer, clip.config.text_config.max_position_embeddings)
        self.texts = Cache(self.read, limit=KEPT_PROMPTS)
        self.freeze()

    @classmethod
    def load(
        cls,
        checkpoint: str | None,
        tokenizer: str,
        condition: str,
        threshold: float,
        architecture: str = "ViT-H-14",
    ) -> MPS:
        """Load the state dict of the published checkpoint and a CLIP's tokenizer.

        Args:
            checkpoint: a local file, `hf://owner/repo/file` or an address.
            tokenizer: folder or hub id.
            architecture: see `architecture_config`.
        """
        if checkpoint is None:
            raise UsageError(
                "MPS: checkpoint= is needed. Its authors publish a pickled model, which could run any code: save its "
                "state dict as .safetensors where you trust it, see docs/scorers.md"
            )
        config = architecture_config(architecture)
        state = {key.replace(".fn.", "."): value for key, value in load_state(checkpoint, "MPS checkpoint").items()}
        clip = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
        cross = {
            key.removeprefix("cross_model."): value for key, value in state.items() if key.startswith("cross_model.")
        }
        return cls(
            build(lambda: CLIPModel(config), clip, checkpoint, LAYOUT),
            build(lambda: CrossModel(config.projection_dim, LAYERS), cross, checkpoint, LAYOUT),
            load_tokenizer(CLIPTokenizer, tokenizer),
            condition,
            threshold,
        )

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, int (batch, context)."""
        return self.tokenize(prompts).input_ids

    def read(self, prompts: Sequence[str]) -> Float[Tensor, "batch tokens_and_whole width"]:
        """The embedding of every token, padding included, and last that of the whole prompt."""
        seen = self.clip.get_text_features(self.tokens(prompts).to(self.clip.device))
        return torch.cat([self.clip.text_projection(seen.last_hidden_state), seen.pooler_output[:, None]], 1)

    def kept(self, tokens: Float[Tensor, "batch tokens width"]) -> Bool[Tensor, "batch tokens"]:
        """The text tokens that are like a token of the condition."""
        wanted = self.texts([self.condition])[0, :-1]
        likeness = (tokens @ wanted.T.to(tokens)).amax(-1)
        return likeness / likeness.amax(-1, keepdim=True) > self.threshold

    def pixels(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 size size"]:
        """The published preprocessing."""
        return clip_pixels(images, self.clip.config.vision_config.image_size, floor_crop=True)

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, " batch"]:
        """Scores of preprocessed pictures."""
        seen = self.clip.get_image_features(pixels.to(self.clip.dtype)).last_hidden_state
        tokens, whole = self.texts(prompts).to(seen).split([self.tokenize.length, 1], dim=1)
        looked = self.cross(self.clip.visual_projection(seen), tokens, self.kept(tokens))[:, 0]
        cosines = (normalize(looked, dim=-1) * normalize(whole[:, 0], dim=-1)).sum(-1)
        return (self.clip.logit_scale.exp() * cosines).to(pixels.dtype)

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        return self.score_pixels(self.pixels(images), prompts)
