"""What learns: text encoders and the denoiser, whole or by LoRA, and how it is saved."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from textcraftor.errors import UsageError
from textcraftor.models.model import ORIGINAL, Model
from textcraftor.models.saving import plain_state, save_lora, save_whole, sharing


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021) instead of all weights.

    Args:
        rank: of the update, at least 1.
        alpha: the update is scaled by alpha / rank.
        target_modules: ends of module names, or one regular expression over whole names; `auto`: the family's own.
        layers: numbers of the text encoder's layers; null means all.
    """

    rank: int
    alpha: float
    target_modules: Sequence[str] | str = "auto"
    layers: Sequence[int] | None = None

    def config(self, usual: Sequence[str] = ()) -> LoraConfig:
        targets = usual if self.target_modules == "auto" else self.target_modules
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            target_modules=targets if isinstance(targets, str) else list(targets),
            layers_to_transform=list(self.layers) if self.layers else None,
            layers_pattern=["layers", "block"] if self.layers else None,
        )


@dataclass(frozen=True)
class Learner:
    """One network that learns.

    Args:
        part: text_encoder, text_encoder_2, text_encoder_3 or denoiser.
        component: diffusers' name of it: another one for the denoiser alone.
        lr: its learning rate.
        span: the share of all training steps in which it learns.
        unused: names of weights that nothing which the denoiser reads depends on; they stay as they are.
        pipeline: the class whose LoRA files this network's adapters are written to.
        under: the network under the adapters, where that is not the model's own: it is saved with them.
    """

    part: str
    component: str
    module: Any  # of transformers or diffusers
    lora: LoraConfig | None
    lr: float
    span: tuple[float, float]
    unused: frozenset[str]
    pipeline: Any
    under: Any = None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What of the network learns: all of it, or its adapters."""
        for name, parameter in self.module.named_parameters():
            if name not in self.unused and (self.lora is None or "lora_" in name):
                yield name, parameter

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def learn(self, progress: float) -> None:
        """Let gradients through to the parameters where training's progress, in [0, 1), lies in the span."""
        for parameter in self.parameters:
            parameter.requires_grad_(self.span[0] <= progress < self.span[1])

    def save(self, folder: Path) -> None:
        """Write `text_encoder/`, `unet/` and so on, or their `_lora/`, as diffusers or else peft loads them."""
        if self.lora is None:
            save_whole(self.module, folder / self.component)
            return
        save_lora(self.module, self.component, self.lora, self.pipeline, folder / f"{self.component}_lora")
        if self.under is not None:
            save_whole(self.under, folder / self.component)


def add_learners(
    model: Model,
    tune: Mapping[str, Any],
    name: str = "tuned",
    size: tuple[int, int] = (0, 0),
    begin: str = ORIGINAL,
) -> list[Learner]:
    """Make what `tune` names learn, in fp32: text encoders of its own beside the original, the denoiser in its place.

    Args:
        tune: by part, each null or {lr, span, lora: null or the fields of `Lora`}.
        begin: the reader whose text encoders they start from.

    Raises:
        UsageError: parts that the model does not have, or LoRA targets that a network does not have.
    """
    chosen = {part: options for part, options in tune.items() if options is not None}
    if missing := [part for part in chosen if part not in (*model.text_encoders, "denoiser")]:
        there = ", ".join([*model.text_encoders, "denoiser"])
        raise UsageError(f"tune.{missing[0]}: this model has no such part; it has {there}")
    configs = {part: lora_config(model, part, options["lora"]) for part, options in chosen.items()}
    sources = {part: source_of(model, part, begin) for part in chosen}
    readers = {part: _own(sources[part], configs[part], part) for part in chosen if part != "denoiser"}
    if readers:
        model.add_reader(name, {**model.encoders(begin), **readers})
    unused = unused_weights(model, name, readers, size)
    for part, names in unused.items():
        if (config := configs[part]) is not None and names:
            layers = sorted({one.rpartition(".lora_")[0] for one in names})
            configs[part] = dataclasses.replace(config, exclude_modules=layers)
            readers[part], unused[part] = _own(sources[part], configs[part], part), frozenset()
            model.add_reader(name, {**model.encoders(begin), **readers})
    learners = []
    for part, options in chosen.items():
        config, module = configs[part], readers.get(part, model.denoiser)
        own = not model.tuned_denoiser if part == "denoiser" else sources[part] is model.encoders(ORIGINAL)[part]
        under = None if own or config is None else sharing(sources[part])
        if part == "denoiser" and config is not None:
            _adapt(module, config, part)
        about = (part, model.component(part), module, config, options["lr"], tuple(options["span"]))
        learner = Learner(*about, unused.get(part, frozenset()), type(model.pipeline), under)
        module.requires_grad_(False)
        for parameter in learner.parameters:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        learners.append(learner)
    return learners


def source_of(model: Model, part: str, begin: str) -> Any:
    """The network that a part starts from, without adapters: they are merged into its weights."""
    if part == "denoiser":
        return model.denoiser
    source = model.encoders(begin)[part]
    if not getattr(source, "_hf_peft_config_loaded", False):
        return source
    merged = copy.deepcopy(model.encoders(ORIGINAL)[part]).float()
    merged.load_state_dict(plain_state(source))
    return merged


def lora_config(model: Model, part: str, lora: Mapping[str, Any] | None) -> LoraConfig | None:
    """The adapters that a configuration means for a part."""
    return Lora(**lora).config(model.family.lora_targets[part]) if lora else None


def _own(source: Any, lora: LoraConfig | None, part: str) -> Any:
    """A copy of a text encoder that may learn; with adapters it shares the weights."""
    if lora is None:
        return copy.deepcopy(source).requires_grad_(True)
    module = sharing(source)
    _adapt(module, lora, part)
    return module


def unused_weights(
    model: Model, name: str, encoders: Mapping[str, nn.Module], size: tuple[int, int]
) -> dict[str, frozenset[str]]:
    """The weights of trainable text encoders that get no gradient, as in the last layer of SDXL's first."""
    if not encoders:
        return {}
    places = [(part, key, one) for part, module in encoders.items() for key, one in module.named_parameters()]
    places = [(part, key, one) for part, key, one in places if one.requires_grad]
    with torch.enable_grad():
        embeds = model.encode([""], None, name, size).prompt.mixed.values()
        total = sum((tensor.float().sum() for tensor in embeds), torch.zeros((), device=model.device))
        gradients = torch.autograd.grad(total, [one for _, _, one in places], allow_unused=True)
    none = [(part, key) for (part, key, _), gradient in zip(places, gradients, strict=True) if gradient is None]
    return {part: frozenset(key for where, key in none if where == part) for part in encoders}


def _adapt(module: Any, lora: LoraConfig, part: str) -> None:
    try:
        module.add_adapter(lora)
    except ValueError as error:
        ends = {name.rpartition(".")[2] for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
        raise UsageError(
            f"tune.{part}.lora: no layer matches target_modules={lora.target_modules} and "
            f"layers={lora.layers_to_transform}; its linear layers end in {', '.join(sorted(ends))}"
        ) from error
    if embedding := next((name for name, _ in module.named_parameters() if "lora_embedding" in name), None):
        raise UsageError(
            f"tune.{part}.lora: target_modules={lora.target_modules} means {embedding.partition('.lora_')[0]}, an "
            "embedding, whose adapters cannot be read back: name linear or convolutional layers"
        )


@contextlib.contextmanager
def keeping_gradients(model: Model) -> Iterator[None]:
    """Let the weights of the pipeline's own text encoders, which adapters share, learn afterwards as before."""
    encoders: dict[str, Any] = model.encoders(ORIGINAL)
    learns = [(one, one.requires_grad) for encoder in encoders.values() for one in encoder.parameters()]
    try:
        yield
    finally:
        for parameter, learned in learns:
            parameter.requires_grad_(learned)


def has_adapters(network: nn.Module) -> bool:
    """Whether a network has adapters of peft's in it."""
    return any(isinstance(layer, BaseTunerLayer) for layer in network.modules())


def cast_frozen(modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
    """Store in this dtype whatever does not learn; adapters stay as they are."""
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad and parameter.is_floating_point() and "lora_" not in name:
                parameter.data = parameter.data.to(dtype)


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
