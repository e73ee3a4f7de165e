"""Makes the toybox from nothing: `python scripts/train_toybox.py all`, or one stage by name.

Stages, in order: scenes, vae, clip, clip_constraint, latents, unet, samples, aesthetic, preference, pack, report.
Each reads what the stages before it wrote under --work (default .toybox), resumes from its own checkpoint,
and is skipped when it is done. Pass --device cuda for a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from textcraftor.toybox.captions import PUNCTUATION, VOCABULARY, Kind, caption
from textcraftor.toybox.render import render
from textcraftor.toybox.scenes import LETTERS, sample_scene
from textcraftor.training.caption_tuning import CaptionTuning, tune_on_captions
from textcraftor.training.fitting import FitSettings, fit

SCENES = 40_000
SPLIT_SEEDS = {"train": 1, "validation": 2, "test": 3}


def scene(index: int, split: str = "train"):
    """The scene with this number: the same on every machine."""
    return sample_scene(np.random.default_rng((SPLIT_SEEDS[split], index)), split)


def load_pictures(work: Path) -> np.ndarray:
    return np.load(work / "scenes.npy", mmap_mode="r")


def as_images(pictures: np.ndarray, device: str) -> Tensor:
    """uint8 (batch, 64, 64, 3) to float (batch, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def make_scenes(work: Path, device: str) -> None:
    """Render the training scenes once, uint8 (SCENES, 64, 64, 3)."""
    path = work / "scenes.npy"
    pictures = np.lib.format.open_memmap(work / "scenes.tmp.npy", "w+", np.uint8, (SCENES, 64, 64, 3))
    for index in range(SCENES):
        pictures[index] = (render(scene(index)) * 255).round()
    pictures.flush()
    (work / "scenes.tmp.npy").replace(path)


def new_vae() -> AutoencoderKL:
    channels = (16, 32, 64)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
    )


def train_vae(work: Path, device: str, steps: int = 3500, batch: int = 16) -> None:
    pictures = load_pictures(work)
    torch.manual_seed(0)
    vae = new_vae().to(device)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng(step)
        images = as_images(pictures[np.sort(rng.choice(len(pictures), batch, replace=False))], device)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            output = vae.decode(posterior.sample()).sample
        error = output.float() - images
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float())
        return {"l1": error.abs().mean(), "mse": error.pow(2).mean(), "kl": KL_WEIGHT * kl.mean()}

    fit("vae", vae, loss_of, FitSettings(steps, learning_rate=2e-3), work)
    vae.save_pretrained(work / "vae")


def new_tokenizer() -> CLIPTokenizer:
    """A stock CLIPTokenizer: the grammar's words whole, capitals letter by letter, anything else unknown."""
    start, end, unknown = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"
    tokenizer = CLIPTokenizer(
        vocab={start: 0, end: 1, unknown: 2},
        merges=[],
        bos_token=start,
        eos_token=end,
        pad_token=end,
        unk_token=unknown,
        model_max_length=CONTEXT,
    )
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in VOCABULARY])
    tokenizer.add_tokens([AddedToken(sign, normalized=False) for sign in (*PUNCTUATION, *LETTERS)])
    return tokenizer


def new_clip(vocabulary: int, width: int, layers: int) -> CLIPModel:
    tower = dict(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=width // 32
    )
    text = CLIPTextConfig(
        **tower,
        vocab_size=vocabulary,
        max_position_embeddings=CONTEXT,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    vision = CLIPVisionConfig(**tower, image_size=64, patch_size=8, projection_dim=width)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=width))


def draw_captions(indices: np.ndarray, shares: dict[Kind, float], rng: np.random.Generator) -> list[str]:
    """One caption a scene, its kind drawn with the given shares."""
    kinds = rng.choice(list(shares), p=list(shares.values()), size=len(indices))
    return [caption(scene(int(index)), kind, rng) for index, kind in zip(indices, kinds, strict=True)]


def train_clip(
    work: Path,
    device: str,
    name: str = "clip",
    seed: int = 0,
    width: int = 128,
    layers: int = 3,
    steps: int = 1600,
    batch: int = 128,
) -> None:
    pictures, tokenizer = load_pictures(work), new_tokenizer()
    torch.manual_seed(seed)
    clip = new_clip(len(tokenizer), width, layers).to(device)
    mean, std = torch.tensor(OPENAI_CLIP_MEAN).view(3, 1, 1), torch.tensor(OPENAI_CLIP_STD).view(3, 1, 1)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((seed, step))
        indices = np.sort(rng.choice(len(pictures), batch, replace=False))
        tokens = tokenizer(draw_captions(indices, CLIP_CAPTIONS, rng), padding=True, return_tensors="pt").to(device)
        images = (as_images(pictures[indices], device) / 2 + 0.5 - mean.to(device)) / std.to(device)
        with torch.autocast(device, torch.bfloat16):
            return {"contrastive": clip(**tokens, pixel_values=images, return_loss=True).loss}

    fit(name, clip, loss_of, FitSettings(steps, learning_rate=1e-3, weight_decay=0.05), work)
    clip.save_pretrained(work / name)
    tokenizer.save_pretrained(work / name)


def train_clip_constraint(work: Path, device: str) -> None:
    train_clip(work, device, name="clip_constraint", seed=1, width=96, layers=2)


def encode_latents(work: Path, device: str, batch: int = 100) -> None:
    """Cache every training picture's latents, scaled so that the two strongest directions have unit variance."""
    pictures = load_pictures(work)
    vae = AutoencoderKL.from_pretrained(work / "vae", torch_dtype=torch.float32).to(device)
    with torch.no_grad():
        means = [
            vae.encode(as_images(pictures[i : i + batch], device)).latent_dist.mean
            for i in range(0, len(pictures), batch)
        ]
    latents = torch.cat(means)
    strongest = torch.linalg.eigvalsh(torch.cov(latents.permute(1, 0, 2, 3).flatten(1)))[-2:]
    factor = round(float(strongest.mean() ** -0.5), 4)
    vae.register_to_config(scaling_factor=factor)
    vae.save_pretrained(work / "vae")
    save_file({"latents": (latents * factor).half().contiguous()}, work / "latents.safetensors")
    print(f"latents: scaling_factor {factor}", flush=True)


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(32, 96, 112),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
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


def train_unet(work: Path, device: str) -> None:
    """The base generator, mostly on alt and short captions, by the same loop that tunes UNets on captions."""
    latents = load_file(work / "latents.safetensors")["latents"]
    text_encoder = CLIPTextModel.from_pretrained(work / "clip", torch_dtype=torch.float32).to(device).eval()
    tokenizer = CLIPTokenizer.from_pretrained(work / "clip")
    torch.manual_seed(0)
    unet = new_unet().to(device)

    def encode(captions: list[str]) -> Tensor:
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").to(device)
        return text_encoder(tokens.input_ids).last_hidden_state

    def caption_of(index: int, rng: np.random.Generator) -> str:
        return draw_captions(np.array([index]), UNET_CAPTIONS, rng)[0]

    settings = CaptionTuning(FitSettings(UNET_STEPS, 8e-4, warmup=300, ema_decay=0.999, log_every=100), batch_size=32)
    tune_on_captions(unet, new_scheduler(), latents, caption_of, encode, settings, work)
    unet.save_pretrained(work / "unet")


KL_WEIGHT = 1e-3
CONTEXT = 40  # tokens, start and end included
CLIP_CAPTIONS: dict[Kind, float] = {"short": 0.3, "descriptive": 0.5, "alt": 0.2}
UNET_CAPTIONS: dict[Kind, float] = {"short": 0.35, "descriptive": 0.25, "alt": 0.4}
UNET_STEPS = 16_000
STAGES: dict[str, Callable[[Path, str], None]] = {
    "scenes": make_scenes,
    "vae": train_vae,
    "clip": train_clip,
    "clip_constraint": train_clip_constraint,
    "latents": encode_latents,
    "unet": train_unet,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["all", *STAGES])
    parser.add_argument("--work", type=Path, default=Path(".toybox"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if arguments.stage == "all" else [arguments.stage]:
        done = arguments.work / f"{stage}.done"
        if done.exists():
            continue
        began = time.time()
        STAGES[stage](arguments.work, arguments.device)
        done.write_text(json.dumps({"seconds": round(time.time() - began)}))
        print(f"{stage}: done in {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
