"""What the text says to a denoiser, and what each family of models must say about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from jaxtyping import Float
from torch import Tensor

from textcraftor.models.noise import NoiseSchedule
from textcraftor.models.original_names import Naming
from textcraftor.models.sampler import Sampler

Size = tuple[int, int]  # height, width of a picture in pixels


@dataclass(frozen=True)
class Branch:
    """One branch of guidance, under the denoiser's own argument names; the first axis of every tensor is the batch.

    Args:
        mixed: what encoders say, as hidden states and pooled embeddings: weighted sums of encoders go over these.
        fixed: what every encoder leaves as it is, as SDXL's time ids.
    """

    mixed: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Branch:
        """The same branch with every tensor changed."""
        mixed, fixed = ({name: change(one) for name, one in part.items()} for part in (self.mixed, self.fixed))
        return Branch(mixed, fixed)

    @staticmethod
    def cat(branches: Sequence[Branch]) -> Branch:
        """Several branches' rows after each other."""
        parts = [[branch.mixed for branch in branches], [branch.fixed for branch in branches]]
        mixed, fixed = ({name: torch.cat([one[name] for one in part]) for name in part[0]} for part in parts)
        return Branch(mixed, fixed)

    @staticmethod
    def mix(parts: Mapping[str, Branch], weights: Mapping[str, float]) -> Branch:
        """The weighted sum of several encoders' embeddings (TextCraftor, section 3.4)."""
        one = parts[next(iter(weights))]
        mixed: dict[str, Any] = {
            key: sum(weight * parts[name].mixed[key] for name, weight in weights.items()) for key in one.mixed
        }
        return Branch(mixed, one.fixed)


@dataclass(frozen=True)
class Regional:
    """What the text says of parts of pictures: a row for each region of each sample.

    Args:
        owners: (regions,), the sample that each belongs to.
        weights: (regions, 1, h, w), how much each counts at each latent beside the picture's prompt, which counts 1.
    """

    branch: Branch
    owners: Tensor
    weights: Float[Tensor, "regions 1 h w"]

    def blend(
        self, whole: Float[Tensor, "batch channels h w"], parts: Float[Tensor, "regions channels h w"]
    ) -> Float[Tensor, "batch channels h w"]:
        """(eps(P) + sum_i w_i eps(P_i)) / (1 + sum_i w_i) from the outputs for pictures and for regions."""
        weights = self.weights.to(whole.dtype)
        total = torch.ones_like(whole[:, :1]).index_add(0, self.owners, weights)
        return whole.index_add(0, self.owners, weights * parts) / total

    def row(self, index: int) -> Regional | None:
        """The regions of one sample alone."""
        own = self.owners == index
        if not own.any():
            return None
        return Regional(self.branch.map(lambda tensor: tensor[own]), self.owners[own] - index, self.weights[own])


@dataclass(frozen=True)
class Conditioning:
    """What the text says to the denoiser.

    Args:
        prompt: the conditional branch.
        negative: the unconditional branch: the negative prompt or the empty one; None without classifier-free guidance.
        regional: the conditional branch of the regions that have prompts of their own; None without any.
    """

    prompt: Branch
    negative: Branch | None
    regional: Regional | None = None

    @property
    def branches(self) -> list[Branch]:
        """The prompt's, the negative one's and the regions', as far as there are any."""
        regions = None if self.regional is None else self.regional.branch
        return [branch for branch in (self.prompt, self.negative, regions) if branch is not None]

    def change(self, change: Callable[[Branch], Branch]) -> Conditioning:
        """The same conditioning with every branch changed, in the order of `branches`."""
        prompt, negative = change(self.prompt), None if self.negative is None else change(self.negative)
        regional = self.regional and replace(self.regional, branch=change(self.regional.branch))
        return Conditioning(prompt, negative, regional)

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same conditioning with every branch's tensors changed."""
        return self.change(lambda branch: branch.map(change))

    def row(self, index: int) -> Conditioning:
        """That of one sample alone."""
        own = replace(self, regional=None).map(lambda tensor: tensor[index : index + 1])
        return own if self.regional is None else replace(own, regional=self.regional.row(index))

    @staticmethod
    def mix(parts: Mapping[str, Conditioning], weights: Mapping[str, float]) -> Conditioning:
        """The weighted sum of several encoders' embeddings, all branches alike (TextCraftor, section 3.4)."""
        each = {name: iter(parts[name].branches) for name in weights}
        return parts[next(iter(weights))].change(
            lambda _: Branch.mix({name: next(branches) for name, branches in each.items()}, weights)
        )


@dataclass(frozen=True)
class Version:
    """The names of a kind of base model that web UIs sort files by.

    Args:
        kohya: what kohya's tools write as `ss_base_model_version`.
        architecture: what Stability's ModelSpec 1.0.0 calls it.
    """

    kohya: str
    architecture: str


class Family(ABC):
    """What tells one family of models from another; everything else is written once, in `Model`.

    Attributes:
        pipelines: how the names of its pipelines' classes in diffusers begin.
        single_files: a tensor by which a single-file checkpoint of this family is known, the pipeline for it, and the
            published layout of what the file does not hold; without one it comes from the hub.
        denoiser: diffusers' name of the component: `unet` or `transformer`.
        text_encoders: diffusers' names of the components that read prompts.
        arguments: of a branch's tensors, the names that the pipeline's call gives them; for the negative branch they
            begin with `negative_`.
        switchable: of a branch's tensors, the names under which the pipeline's step callback can change them.
        joined: whether the callback sees the negative branch, before the prompt's in one tensor.
        lora_targets: ends of the names of the layers that LoRA adapts, by kind of part: `text_encoder` and so on, and
            `denoiser`.
        kohya: what begins the names of a part's adapters in kohya's files; a part that is missing is not exported so.
        kohya_readers: the parts whose adapters diffusers reads from kohya's files.
        hidden_layers: the indices of the hidden states that `encode` asks text encoders for.
        load_options: for the pipeline's `from_pretrained`.
    """

    pipelines: ClassVar[str]
    single_files: ClassVar[Mapping[str, tuple[str, str | None]]] = {}
    denoiser: ClassVar[str]
    text_encoders: ClassVar[tuple[str, ...]]
    arguments: ClassVar[Mapping[str, str]]
    switchable: ClassVar[Mapping[str, str]]
    joined: ClassVar[bool] = True
    lora_targets: ClassVar[Mapping[str, tuple[str, ...]]]
    kohya: ClassVar[Mapping[str, str]] = {}
    kohya_readers: ClassVar[tuple[str, ...]] = ()
    hidden_layers: ClassVar[tuple[int, ...]] = (-2,)
    load_options: ClassVar[Mapping[str, Any]] = {}

    def single_file_names(self, pipe: DiffusionPipeline) -> Mapping[str, Naming]:
        """By part of the pipeline, how a single-file checkpoint names its tensors; empty without such a layout."""
        return {}

    def version(self, pipe: DiffusionPipeline) -> Version | None:
        """What a LoRA's file says of its base model; None where kohya's tools have no word for the family."""
        return None

    @abstractmethod
    def encode(self, reader: DiffusionPipeline, texts: Sequence[str], size: Size) -> Branch:
        """What a pipeline's text encoders say of each text, with gradients; size matters where a family says it."""

    @abstractmethod
    def predict(
        self,
        pipe: DiffusionPipeline,
        latents: Float[Tensor, "batch channels h w"],
        t: Tensor,
        branch: Branch,
        guidance: float,
    ) -> Float[Tensor, "batch channels h w"]:
        """The denoiser's raw output at timesteps `t`, one or (batch,); guidance is for those that embed its scale."""

    @abstractmethod
    def latent_shape(self, pipe: DiffusionPipeline, size: Size) -> tuple[int, int, int]:
        """Channels, height and width of a picture's latents, as `predict` takes them."""

    @abstractmethod
    def multiple(self, pipe: DiffusionPipeline) -> int:
        """Pixels that both sides of a picture must be multiples of."""

    def bucket_step(self, pipe: DiffusionPipeline) -> int:
        """Pixels by which the sides of pictures of other aspect ratios differ."""
        return self.multiple(pipe)

    @abstractmethod
    def noise_schedule(self, pipe: DiffusionPipeline) -> NoiseSchedule:
        """How much signal and noise there is at each timestep, and what the denoiser predicts."""

    @abstractmethod
    def set_timesteps(self, pipe: DiffusionPipeline, scheduler: SchedulerMixin, steps: int, size: Size) -> None:
        """As the stock pipeline does it; flows spend more time at high noise for larger pictures."""

    @abstractmethod
    def sampler(self, pipe: DiffusionPipeline, name: str, steps: int, size: Size) -> Sampler:
        """A fresh sampler of that name with its timesteps set as the stock pipeline sets them.

        Raises:
            UsageError: this family has no sampler of that name, or not so many steps.
        """

    def guided(self, pipe: DiffusionPipeline, guidance_scale: float) -> bool:
        """Whether this guidance scale means classifier-free guidance, with a second branch."""
        return guidance_scale > 1

    def no_prompt(self, pipe: DiffusionPipeline, branch: Branch) -> Branch | None:
        """The second branch where there is no negative prompt, from one of the same shape; None: the empty prompt's."""
        return None

    def to_latents(self, pipe: DiffusionPipeline, encoded: Float[Tensor, "batch channels h w"]) -> Tensor:
        """What the VAE encodes, as the denoiser wants it."""
        config = pipe.vae.config
        return (encoded - (config.get("shift_factor") or 0.0)) * config.scaling_factor

    def from_latents(self, pipe: DiffusionPipeline, latents: Float[Tensor, "batch channels h w"]) -> Tensor:
        """The inverse of `to_latents`."""
        config = pipe.vae.config
        return latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
