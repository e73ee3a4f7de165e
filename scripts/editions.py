"""The second world's editions: one world in the layouts of Stable Diffusion, SDXL and Stable Diffusion 3.

Each begins as a stock pipeline, untrained or warm, and is trained by one function, which knows none of the layouts:
their families do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from toybox_ratings import draw_captions, scene
from transformers import (
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from textcraftor.models.base import Branch
from textcraftor.models.model import Model
from textcraftor.toybox.world2.captions import Kind
from textcraftor.toybox.world2.scenes import boxes
from textcraftor.training.fitting import FitSettings, fit
from textcraftor.training.processes import processes_of_this_run

SIZE = (64, 64)
SUBJECT_WEIGHT = 200.0  # in the loss, of all latents of a shape or a word together
CAPTIONS: dict[Kind, float] = {"short": 0.45, "descriptive": 0.4, "alt": 0.15}

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
UNPROMPTED = 0.1  # share of pictures that are learned without a prompt, for guidance


def fast_dtype(device: str) -> torch.dtype:
    """bfloat16 where the device computes in it, float32 where it would only be emulated."""
    return torch.float32 if device == "cpu" and not torch.cpu._is_avx512_bf16_supported() else torch.bfloat16


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
        addition_embed_type="text",  # pooled tokens join the time embedding, so that every block hears the text
        addition_embed_type_num_heads=4,
    )


def new_scheduler() -> DDIMScheduler:
    """LDM's schedule for small latents, v-prediction, from pure noise (trailing) to a clean picture."""
    return DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


class Apart:
    """A pipeline whose text encoders read different texts: `read` gives the first one's, the second one's ... of the
    prompts; `options` go to its `encode_prompt`."""

    def __init__(
        self, pipeline: DiffusionPipeline, read: Callable[[Sequence[str]], Sequence[list[str]]], **options: Any
    ) -> None:
        self.pipeline, self.read, self.options = pipeline, read, options

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def encode_prompt(self, prompts: Sequence[str], *arguments: Any, **options: Any) -> Any:
        texts = self.read(prompts)
        return self.pipeline.encode_prompt(*texts, *arguments[len(texts) - 1 :], **options, **self.options)


def encode_apart(model: Model, texts: Sequence[list[str]], is_prompted: Sequence[bool], **options: Any) -> Branch:
    """What text encoders say that read different texts, one list for each; not every row (batch,) has a prompt."""
    branch = model.family.encode(Apart(model.pipeline, lambda _: texts, **options), texts[0], SIZE)
    return model.absent_as_meant(branch, ["" if prompted else None for prompted in is_prompted])


def train_generator(
    work: Path,
    device: str,
    name: str,
    begin: Callable[[Path], DiffusionPipeline],
    steps: int,
    learning: Sequence[str] = (),
    forgets: float = 0.0,
    batch: int = 32,
    reading: Mapping[str, Any] | None = None,
) -> None:
    """Train a pipeline's denoiser by the loss that tunes denoisers on captions; what captions name counts more.

    Args:
        name: of the folder in --work that the pipeline is written to.
        learning: text encoders that learn along.
        forgets: how often each of several text encoders reads nothing, so that the denoiser heeds all of them.
        reading: options of the pipeline's `encode_prompt`.
    """
    latents = load_file(work / "latents.safetensors")["latents"]
    torch.manual_seed(0)
    model = Model(begin(work).to(device))
    model.compute_dtype = fast_dtype(device)
    schedule, processes = model.noise_schedule, processes_of_this_run()
    for part, encoder in model.encoders().items():
        encoder.requires_grad_(part in learning)
    record = begin_record(work, name)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((record["steps"] + step, processes.process_index))
        torch.manual_seed(int(rng.integers(2**63)))
        indices = rng.choice(len(latents), batch // processes.num_processes, replace=False)
        captions = draw_captions(indices, CAPTIONS, rng)
        is_prompted = rng.random(len(indices)) >= UNPROMPTED
        heard = is_prompted & (rng.random((len(model.text_encoders), len(indices))) >= forgets)
        texts = [[text if hears else "" for text, hears in zip(captions, row, strict=True)] for row in heard]
        clean = latents[torch.from_numpy(indices)].to(device).float()
        noise = torch.randn_like(clean)
        # High noise is preferred, where the text decides.
        timesteps = ((1 - torch.rand(len(clean), device=device) ** 1.5) * schedule.timesteps).long()
        timesteps = timesteps.clamp(max=schedule.timesteps - 1)
        branch = encode_apart(model, texts, is_prompted, **(reading or {}))
        output = model.predict(schedule.add_noise(clean, noise, timesteps), timesteps, branch)
        # Only as far as the noise lets see where things stand: else a model learns to show them wherever they might.
        seen = schedule.levels(timesteps)[0] ** 2
        boxed = subject_weights([boxes(scene(int(index))) for index in indices], clean.shape[-1]).to(device)
        weights = 1 + (boxed - 1) * seen
        return {"mse": (weights * (output - schedule.target(clean, noise, timesteps)).square()).mean()}

    parts = {"denoiser": model.denoiser, **{part: model.encoders()[part] for part in learning}}
    settings = FitSettings(steps, 1e-3, warmup=300, ema_decay=0.999, log_every=100)
    # On CPUs the backward pass of fused attention in bf16 takes up to three times that of plain products.
    with sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext():
        fit(name, nn.ModuleDict(parts), loss_of, settings, work)
    if processes.is_main_process:
        model.pipeline.save_pretrained(work / name)
        told = json.dumps({"steps": record["steps"] + steps}) + "\n"
        (work / name / model.family.denoiser / "training.json").write_text(told)


def subject_weights(boxes: Sequence[Sequence[Box]], side: int) -> Tensor:
    """How much each latent counts in the loss, (pictures, 1, side, side): 1, more in these boxes, most in small ones.

    Shapes and letters cover a tenth of a picture, and what tells one from another is a small part of the error there.
    """
    scale = SIZE[0] // side
    weights = torch.ones(len(boxes), 1, side, side)
    for weight, of_picture in zip(weights, boxes, strict=True):
        for left, top, right, bottom in of_picture:
            rows, columns = (slice(max(a, 0) // scale, -(-b // scale)) for a, b in ((top, bottom), (left, right)))
            box = weight[:, rows, columns]
            box.fill_(SUBJECT_WEIGHT / box.numel())
    return weights


def begin_record(work: Path, name: str) -> dict[str, int]:
    """How long the pipeline in `start_<name>` of --work was trained; 0 steps where there is none."""
    records = [*(work / f"start_{name}").glob("*/training.json")]
    return json.loads(records[0].read_text()) if records else {"steps": 0}


def stable_diffusion(work: Path) -> DiffusionPipeline:
    """Stable Diffusion's layout; a UNet that was trained before goes on with a text encoder taught to spell again."""
    start = work / "start_pipeline" / "unet"
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae", torch_dtype=torch.float32),
        text_encoder=CLIPTextModel.from_pretrained(work / "spelling", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(work / "clip"),
        unet=UNet2DConditionModel.from_pretrained(start) if start.exists() else new_unet(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def spelled_clip(work: Path, clip: str, spelling: str) -> CLIPTextModelWithProjection:
    """A CLIP's text tower that has learnt to spell, with a layer more that changes nothing: SDXL and Stable Diffusion 3
    read what goes into the last one."""
    whole = CLIPModel.from_pretrained(work / clip, dtype=torch.float32)
    config = whole.config.text_config
    state = CLIPTextModel.from_pretrained(work / spelling, dtype=torch.float32).state_dict()
    state = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in state.items()}
    state["text_projection.weight"] = whole.text_projection.weight
    config.num_hidden_layers += 1
    longer = CLIPTextModelWithProjection(config)
    for key, value in longer.state_dict().items():
        state.setdefault(key, torch.zeros_like(value) if ".out_proj." in key or ".fc2." in key else value)
    longer.load_state_dict(state)
    return longer


def clips(work: Path) -> dict[str, Any]:
    """Both CLIPs as SDXL and SD3 read them, and their tokenizers."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "clip")
    return {
        "text_encoder": spelled_clip(work, "clip", "spelling"),
        "text_encoder_2": spelled_clip(work, "clip_2", "spelling_2"),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
    }


def without_projection(encoder: CLIPTextModelWithProjection) -> CLIPTextModel:
    plain = CLIPTextModel(encoder.config)
    plain.load_state_dict(encoder.text_model.state_dict())
    return plain


def sdxl(work: Path) -> DiffusionPipeline:
    """SDXL's layout, from the edition of Stable Diffusion: what is new in the UNet begins at zero."""
    if (work / "start_sdxl").exists():
        return StableDiffusionXLPipeline.from_pretrained(work / "start_sdxl", torch_dtype=torch.float32)
    old = UNet2DConditionModel.from_pretrained(work / "pipeline" / "unet", torch_dtype=torch.float32)
    parts = clips(work)
    parts["text_encoder"] = without_projection(first := parts["text_encoder"])
    pooled = parts["text_encoder_2"].config.projection_dim
    width = parts["text_encoder"].config.hidden_size + parts["text_encoder_2"].config.hidden_size
    unet = UNet2DConditionModel.from_config(
        dict(old.config)
        | {
            "cross_attention_dim": width,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 16,
            "projection_class_embeddings_input_dim": pooled + 6 * 16,
        }
    )
    state = {key: value for key, value in old.state_dict().items() if not key.startswith("add_embedding.")}
    norm = first.text_model.final_layer_norm
    for key, value in unet.state_dict().items():
        if key.startswith("add_embedding."):
            state[key] = torch.zeros_like(value) if ".linear_2." in key else value
        elif ".attn2.to_k." in key or ".attn2.to_v." in key:
            # Neither reads the second encoder yet, and the first one's last norm, which is left out here, is folded in.
            state[key] = torch.cat([state[key] * norm.weight, torch.zeros(len(value), width - len(norm.weight))], 1)
    unet.load_state_dict(state)
    vae = AutoencoderKL.from_pretrained(work / "pipeline" / "vae", torch_dtype=torch.float32)
    return StableDiffusionXLPipeline(vae=vae, unet=unet, scheduler=new_scheduler(), **parts, add_watermarker=False)


def sd3(work: Path) -> DiffusionPipeline:
    """Stable Diffusion 3's layout, untrained but for its CLIPs: a T5 learns along with the transformer."""
    if (work / "start_sd3").exists():
        return StableDiffusion3Pipeline.from_pretrained(work / "start_sd3", torch_dtype=torch.float32)
    parts = clips(work)
    tokenizer = parts["tokenizer"]
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=256,
            d_kv=32,
            d_ff=512,
            num_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    vae = AutoencoderKL.from_pretrained(work / "pipeline" / "vae", torch_dtype=torch.float32)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=5,
        joint_attention_dim=256,
        caption_projection_dim=160,
        pooled_projection_dim=sum(parts[name].config.projection_dim for name in ("text_encoder", "text_encoder_2")),
        pos_embed_max_size=16,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=scheduler, vae=vae, **parts, text_encoder_3=t5, tokenizer_3=tokenizer
    )
