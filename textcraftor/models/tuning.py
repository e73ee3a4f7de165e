"""What learns: text encoder and UNet, whole or by LoRA, and how it is saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from textcraftor.errors import UsageError
from textcraftor.models.stable_diffusion import StableDiffusion

PREFIX = "text_model."
PARTS = ("text_encoder", "unet")
LEARNING = {"text_encoder": "text_encoder", "denoiser": "unet"}  # what `tune` names, and diffusers' name of it
LORA_TARGETS = {
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "unet": ["to_q", "to_k", "to_v", "to_out.0"],
}
LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021) instead of all weights.

    Args:
        rank: of the update, at least 1.
        alpha: the update is scaled by alpha / rank.
        target_modules: ends of module names, or one regular expression over whole names; `auto` is the part's own.
        layers: numbers of the text encoder's layers; null means all.
    """

    rank: int
    alpha: float
    target_modules: Sequence[str] | str
    layers: Sequence[int] | None = None

    def config(self, part: str) -> LoraConfig:
        targets = LORA_TARGETS[part] if self.target_modules == "auto" else self.target_modules
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            target_modules=targets if isinstance(targets, str) else list(targets),
            layers_to_transform=list(self.layers) if self.layers else None,
            layers_pattern="layers" if self.layers else None,
        )


@dataclass(frozen=True)
class Learner:
    """One network that learns.

    Args:
        part: text_encoder or unet.
        lr: its learning rate.
        span: the share of all training steps in which it learns.
    """

    part: str
    module: Any  # a CLIPTextModel or a UNet2DConditionModel
    lora: LoraConfig | None
    lr: float
    span: tuple[float, float]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What of the network learns: all of it, or its adapters."""
        return ((name, p) for name, p in self.module.named_parameters() if self.lora is None or "lora_" in name)

    @property
    def key(self) -> str:
        """What `tune` calls it."""
        return next(key for key, part in LEARNING.items() if part == self.part)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def learn(self, progress: float) -> None:
        """Let gradients through to the parameters where training's progress, in [0, 1), lies in the span."""
        for parameter in self.parameters:
            parameter.requires_grad_(self.span[0] <= progress < self.span[1])

    def save(self, folder: Path) -> None:
        """Write `text_encoder/`, `unet/`, or their `_lora/`, as diffusers loads them."""
        if self.lora is not None:
            save_lora(self, folder / f"{self.part}_lora")
        elif self.part == "unet":
            self.module.save_pretrained(folder / "unet")
        else:
            save_text_encoder(self.module, folder / "text_encoder")


def add_learners(model: StableDiffusion, tune: Mapping[str, Any], name: str = "tuned") -> list[Learner]:
    """Make what `tune` names learn, in fp32: a text encoder of its own beside the original, the UNet in its place.

    Args:
        tune: text_encoder and denoiser, each null or {lora: null or the fields of `Lora`, lr, span}.

    Raises:
        UsageError: LoRA targets that the network does not have.
    """
    learners = []
    for key, part in LEARNING.items():
        if tune.get(key) is None:
            continue
        options = tune[key]
        lora = Lora(**options["lora"]).config(part) if options["lora"] else None
        if part == "text_encoder":
            original = model.text_encoders["original"]
            shared = {id(parameter): parameter for parameter in original.parameters()} if lora else {}
            module = model.text_encoders[name] = copy.deepcopy(original, shared)
        else:
            module = model.unet
        if lora:
            _adapt(module, lora, key)
        learner = Learner(part, module, lora, options["lr"], tuple(options["span"]))
        for parameter in learner.parameters:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        learners.append(learner)
    return learners


def _adapt(module: Any, lora: LoraConfig, part: str) -> None:
    try:
        module.add_adapter(lora)
    except ValueError as error:
        ends = {name.rpartition(".")[2] for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
        raise UsageError(
            f"tune.{part}.lora: no layer matches target_modules={lora.target_modules} and "
            f"layers={lora.layers_to_transform}; its linear layers end in {', '.join(sorted(ends))}"
        ) from error


def cast_frozen(modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
    """Store in this dtype whatever does not learn; adapters stay as they are."""
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad and parameter.is_floating_point() and "lora_" not in name:
                parameter.data = parameter.data.to(dtype)


def save_text_encoder(encoder: CLIPTextModel, folder: Path) -> None:
    """Write a diffusers `text_encoder/` folder, with the published `text_model.` key names.

    transformers 5 leaves the prefix out, and whatever expects it then loads random weights with only a warning.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoder.config.save_pretrained(folder)
    state = {
        prefixed(key): value.detach().cpu().contiguous()
        for key, value in encoder.state_dict().items()
        if not key.endswith("position_ids")
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def prefixed(key: str) -> str:
    return key if key.startswith(PREFIX) else PREFIX + key


def save_lora(learner: Learner, folder: Path) -> None:
    """Write adapters so that any pipeline's `load_lora_weights` takes them."""
    assert learner.lora is not None
    state = {key: value.detach().cpu() for key, value in get_peft_model_state_dict(learner.module).items()}
    if learner.part == "text_encoder":
        state = {prefixed(key): value for key, value in state.items()}
    StableDiffusionPipeline.save_lora_weights(
        folder,
        **{
            f"{learner.part}_lora_layers": convert_state_dict_to_diffusers(state),
            f"{learner.part}_lora_adapter_metadata": learner.lora.to_dict(),
        },
    )


def state_of(learners: Sequence[Learner]) -> dict[str, Tensor]:
    """A copy of everything that learns, by part and name, on the CPU."""
    return {
        f"{learner.part}.{name}": parameter.detach().to("cpu", copy=True)
        for learner in learners
        for name, parameter in learner.named_parameters()
    }


@torch.no_grad()
def load_state(learners: Sequence[Learner], state: Mapping[str, Tensor]) -> None:
    """Put back what `state_of` copied."""
    for learner in learners:
        for name, parameter in learner.named_parameters():
            parameter.copy_(state[f"{learner.part}.{name}"])
