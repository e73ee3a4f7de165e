"""One model for all families: a frozen pipeline, and readers, which are that pipeline with other text encoders."""

from __future__ import annotations

import copy
import importlib
import pkgutil
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from textcraftor.errors import UsageError
from textcraftor.models import families as package
from textcraftor.models.base import Branch, Conditioning, Family, Size
from textcraftor.models.placing import Part, Place, Together, put_layer_by_layer
from textcraftor.models.remembering import Remembered
from textcraftor.models.sampler import Sampler
from textcraftor.models.seeds import unit_noise
from textcraftor.models.sharding import begin_anew, shard

ORIGINAL = "original"  # the name of the pipeline's own text encoders


@cache
def families() -> tuple[Family, ...]:
    """Every family: the class of each file in `families/` that says which pipelines it is for."""
    names = [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    kinds = [kind for name in names for kind in vars(importlib.import_module(name)).values()]
    classes = {
        kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Family) and hasattr(kind, "pipelines")
    }
    return tuple(kind() for kind in sorted(classes, key=lambda kind: kind.pipelines, reverse=True))


def family_of(*names: str) -> Family:
    """The family of a pipeline's class, by its name or that of a class that it is derived from.

    Raises:
        UsageError: no family is for such pipelines.
    """
    for name in names:
        for family in families():  # the longest beginning comes first
            rest = name.removeprefix(family.pipelines)
            if rest != name and not rest[:1].isdigit():
                return family
    known = ", ".join(sorted(family.pipelines for family in families()))
    raise UsageError(f"{names[0]} is a pipeline of no family that is known here: {known}")


class Model:
    """A pipeline's parts and its text encoders by name; `original` are the pipeline's own.

    Args:
        pipeline: of its sampler only the configuration is used. Nothing of it is changed.
    """

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.family = family_of(*(kind.__name__ for kind in type(pipeline).__mro__))
        self.noise_schedule = self.family.noise_schedule(pipeline)
        self.compute_dtype = torch.float32
        self.tuned_denoiser = False  # whether its weights are those of a run
        self.readers = {ORIGINAL: copy.copy(pipeline)}

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipeline, self.family.denoiser)

    @property
    def vae(self) -> Any:
        return self.pipeline.vae

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The parts that read prompts and that this model has; a T5 may be left out."""
        return tuple(part for part in self.family.text_encoders if getattr(self.pipeline, part, None) is not None)

    def component(self, part: str) -> str:
        """diffusers' name of a part: that of `denoiser` depends on the family."""
        return self.family.denoiser if part == "denoiser" else part

    def encoders(self, name: str = ORIGINAL) -> dict[str, nn.Module]:
        """The text encoders of a reader, by part."""
        parts = {part: getattr(self.readers[name], part) for part in self.text_encoders}
        return {part: one.encoder if isinstance(one, Remembered) else one for part, one in parts.items()}

    def remember(self) -> None:
        """Let every text encoder that does not learn run once for each text."""
        known = dict[int, Remembered]()
        for name, reader in self.readers.items():
            for part, encoder in self.encoders(name).items():
                if not _learns(encoder):
                    new = Remembered(encoder, self.family.hidden_layers, self.device)
                    setattr(reader, part, known.setdefault(id(encoder), new))

    @property
    def remembered(self) -> dict[str, Remembered]:
        """The text encoders that run once for each text, by part, those of other readers with the reader's name."""
        by_part = dict[str, Remembered]()
        for name, reader in self.readers.items():
            for part in self.text_encoders:
                one = getattr(reader, part)
                if isinstance(one, Remembered) and one not in by_part.values():
                    by_part[part if name == ORIGINAL else f"{name}.{part}"] = one
        return by_part

    def placeable(self) -> list[Part]:
        """The parts that may be elsewhere than on the device: the pipeline's own text encoders that do not learn and on
        whose weights no other has adapters; a denoiser that does not learn whole; and the VAE."""
        encoders = self.encoders(ORIGINAL)
        parts = [
            Part.of(part, encoders[part], ("while_it_works", "on_disk", "sharded"), alone=True)
            for part in self._own_encoders()
        ]
        if not all(one.requires_grad for one in self.denoiser.parameters()):
            parts.append(Part.of("denoiser", self.denoiser, ("sharded", "layer_by_layer")))
        return [*parts, Part.of("vae", self.vae, ("layer_by_layer",))]

    def _own_encoders(self) -> list[str]:
        every = {one for name in self.readers for one in self.encoders(name).values()}
        users = Counter(id(weight) for one in every for weight in one.parameters())
        return [
            part
            for part, one in self.encoders(ORIGINAL).items()
            if not _learns(one) and all(users[id(weight)] == 1 for weight in one.parameters())
        ]

    def place(
        self, places: Mapping[str, Place], learning: Collection[nn.Parameter] = (), together: Together | None = None
    ) -> None:
        """Put parts of `placeable` in their places, for good where that is no text encoder; the others stay.

        Args:
            learning: what learns, which stays on the device, whole.
        """
        for part, one in self.remembered.items():
            one.put(places.get(part, "resident"), together)
        for part, network in {"denoiser": self.denoiser, "vae": self.vae}.items():
            place = places.get(part, "resident")
            if place == "layer_by_layer":
                put_layer_by_layer(network, self.device, learning)
            elif place == "sharded" and together is not None:
                shard(network, self.device, learning, together)

    def begin_anew(self) -> None:
        """Forget a pass that broke off in every process alike."""
        for network in (self.denoiser, *self.encoders(ORIGINAL).values()):
            begin_anew(network)

    def add_reader(self, name: str, encoders: Mapping[str, nn.Module]) -> None:
        """Name text encoders that take the place of some of the pipeline's own."""
        reader = copy.copy(self.readers[ORIGINAL])
        for part, encoder in encoders.items():
            setattr(reader, part, encoder)
        self.readers[name] = reader

    def encode(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str | None] | None,
        encoder: str = ORIGINAL,
        size: Size = (0, 0),
    ) -> Conditioning:
        """Embed prompts with the encoders of that name; a text that occurs several times is encoded once.

        Args:
            negative_prompts: one a prompt, or None for no second branch; None in it is no negative prompt, which some
                families tell from the empty one.
            size: of the pictures, which some families tell the denoiser.
        """
        if negative_prompts is not None and len(prompts) != len(negative_prompts):
            raise UsageError(f"{len(negative_prompts)} negative prompts for {len(prompts)} prompts: give one each")
        texts = list(dict.fromkeys([*prompts, *(text or "" for text in negative_prompts or ())]))
        branch = self.family.encode(self.readers[encoder], texts, size)
        prompt = branch.map(lambda tensor: tensor[[texts.index(text) for text in prompts]])
        if negative_prompts is None:
            return Conditioning(prompt, None)
        negative = branch.map(lambda tensor: tensor[[texts.index(text or "") for text in negative_prompts]])
        return Conditioning(prompt, self.absent_as_meant(negative, negative_prompts))

    def absent_as_meant(self, negative: Branch, texts: Sequence[str | None]) -> Branch:
        """A branch of guidance in which None among its texts means what no prompt means in this family."""
        absent = self.family.no_prompt(self.pipeline, negative)
        if absent is None or None not in texts:
            return negative
        empty = torch.tensor([text is None for text in texts], device=self.device)

        def choose(absent_rows: Tensor, rows: Tensor) -> Tensor:
            return torch.where(empty.view(-1, *[1] * (rows.ndim - 1)), absent_rows, rows)

        return Branch({name: choose(absent.mixed[name], one) for name, one in negative.mixed.items()}, negative.fixed)

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Float[Tensor, "batch channels h w"]:
        """The noise that the stock pipeline draws from `[torch.Generator().manual_seed(s) for s in seeds]`; for seeds
        from 2^32 on, which torch would not tell from smaller ones, see `unit_noise`."""
        multiple = self.family.multiple(self.pipeline)
        if height % multiple or width % multiple:
            raise UsageError(f"size {height}x{width}: both must be multiples of {multiple}")
        shape = self.family.latent_shape(self.pipeline, (height, width))
        drawn = torch.stack([unit_noise(shape, seed) for seed in seeds])
        return drawn.to(self.device, torch.promote_types(self.denoiser.dtype, torch.float32))

    def sampler(self, name: str, steps: int, size: Size) -> Sampler:
        """A fresh sampler of that name, ready for its first step; a flow's timesteps depend on the size."""
        return self.family.sampler(self.pipeline, name, steps, size)

    def check_prompts(self, prompts: Sequence[str | None]) -> None:
        """Refuse prompts with words that the first tokenizer does not know; warn of those that every one cuts off."""
        given = [prompt for prompt in dict.fromkeys(prompts) if prompt is not None]
        tokenizers = [getattr(self.pipeline, part.replace("text_encoder", "tokenizer")) for part in self.text_encoders]
        longest = max(tokenizers, key=lambda one: one.model_max_length)
        for prompt, ids in zip(given, _tokens(tokenizers[0], given), strict=True):
            if tokenizers[0].unk_token_id in ids:
                pieces = prompt.replace('"', " ").replace(",", " ").split()
                words = [word for word in pieces if tokenizers[0].unk_token_id in _tokens(tokenizers[0], [word])[0]]
                raise UsageError(
                    f"prompt {prompt!r}: this model's tokenizer does not know {', '.join(words) or 'some of its signs'}"
                )
        room = longest.model_max_length - longest.num_special_tokens_to_add()
        for prompt, ids in zip(given, _tokens(longest, given), strict=True):
            if len(ids) > room:
                warnings.warn(f"prompt {prompt!r}: its end, past token {room}, is cut off", stacklevel=2)

    def guided(self, guidance_scale: float) -> bool:
        """Whether this guidance scale needs a second branch."""
        return self.family.guided(self.pipeline, guidance_scale)

    def predict(
        self, latents: Float[Tensor, "batch channels h w"], t: Tensor, branch: Branch, guidance_scale: float = 1.0
    ) -> Float[Tensor, "batch channels h w"]:
        """The denoiser's raw output at one timestep or at (batch,): in the frozen parts' precision, also where the
        denoiser learns in fp32; returned in the latents' dtype."""
        dtype = self.denoiser.dtype
        mixed = dtype == torch.float32 != self.compute_dtype
        device = "cpu" if self.device.type == "meta" else self.device.type
        with torch.autocast(device, self.compute_dtype, enabled=mixed):
            output = self.family.predict(
                self.pipeline, latents.to(dtype), t, branch.map(lambda tensor: tensor.to(dtype)), guidance_scale
            )
        return output.to(latents.dtype)

    def checkpoint_blocks(self, denoiser: bool, decoder: bool) -> None:
        """Whether the backward pass computes activations again block by block, and the decoder's picture by picture."""
        for part, wanted in ((self.denoiser, denoiser), (self.vae, decoder)):
            if wanted:
                part.enable_gradient_checkpointing()
            else:
                part.disable_gradient_checkpointing()

    def decode(self, latents: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 3 height width"]:
        """Images in [0, 1]; picture by picture where that saves memory: the decoder's activations are the largest."""
        if not torch.is_grad_enabled():
            return torch.cat([self._decode(one) for one in latents.split(1)])
        if self.vae.is_gradient_checkpointing:
            return torch.cat(
                [
                    checkpoint(self._decode, one, use_reentrant=False, preserve_rng_state=False)
                    for one in latents.split(1)
                ]
            )
        return self._decode(latents)

    def _decode(self, latents: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 3 height width"]:
        images = self.vae.decode(self.family.from_latents(self.pipeline, latents).to(self.vae.dtype)).sample
        return (images / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def to_latents(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels h w"]:
        """The latents of images in [-1, 1]: the posterior's mean, as the denoiser wants it."""
        encoded = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist.mean
        return self.family.to_latents(self.pipeline, encoded)


def _learns(network: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in network.parameters())


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The whole of each text, without special tokens."""
    return tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False).input_ids if texts else []
