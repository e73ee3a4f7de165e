"""Makes the toybox from nothing: `python scripts/train_toybox.py all`, or one stage by name.

Stages, in order: scenes, vae, clip, clip_2, clip_constraint, spelling, spelling_2, latents, pipeline (the edition in
Stable Diffusion's layout), sdxl, sd3, prompts, samples, varied, eyes, aesthetic, hpsv2, pickscore, imagereward,
recogniser, pack, report. Each reads what the stages before it wrote under --work (default .toybox), resumes from its
own checkpoint, and is skipped when it is done. Pass --device cuda for a GPU. To train a packed edition on, copy its
folder to --work as `start_pipeline`, `start_sdxl` or `start_sd3`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import measure_toybox
import numpy as np
import torch
from diffusers import AutoencoderKL
from editions import fast_dtype, sd3, sdxl, stable_diffusion, train_generator
from results import show
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor, nn
from toybox_ratings import SPLIT_SEEDS, draw_captions, generate_samples, load_rated, prompt_of, scene
from toybox_scorers import SCORER_STAGES, packed_scorers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from textcraftor.data.prompt_files import read_prompts
from textcraftor.models.loading import load_pipeline
from textcraftor.models.model import Model
from textcraftor.models.saving import save_whole
from textcraftor.rewards.recognisers import load_recogniser
from textcraftor.toybox.world2.captions import PUNCTUATION, VOCABULARY, Kind, caption, short
from textcraftor.toybox.world2.render import render
from textcraftor.toybox.world2.scenes import (
    LETTERS,
    WORD_LENGTHS,
    Scene,
    Split,
    is_unseen_word,
    sample_scene,
    sample_word,
)
from textcraftor.training.fitting import FitSettings, fit
from textcraftor.training.processes import processes_of_this_run

SCENES = 100_000
CONTEXT = 48  # tokens that the text encoders read, start and end included
CLIP_CAPTIONS: dict[Kind, float] = {"short": 0.2, "descriptive": 0.65, "alt": 0.15}
UNET_STEPS, SDXL_STEPS, SD3_STEPS = 20_000, 8_000, 40_000


def spelled(drawn: Scene, rng: np.random.Generator) -> str:
    """A descriptive or a short caption with the scene's word."""
    return caption(drawn, "descriptive", rng) if rng.random() < 0.6 else short(drawn, say_word=True)


def load_pictures(work: Path) -> np.ndarray:
    return np.load(work / "scenes.npy", mmap_mode="r")


def as_images(pictures: np.ndarray, device: str) -> Tensor:
    """uint8 (batch, 64, 64, 3) to float (batch, 3, 64, 64) in [-1, 1]."""
    return torch.tensor(pictures, device=device).permute(0, 3, 1, 2).float() / 127.5 - 1


def make_scenes(work: Path, device: str) -> None:
    """Render the training scenes once, uint8 (scenes, 64, 64, 3)."""
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


def busiest_crops(images: Tensor, side: int, each: int) -> Tensor:
    """Of every image the `each` crops with most contrast, (batch * each, 3, side, side): most of a scene is ground."""
    crops = images.unfold(2, side, side // 2).unfold(3, side, side // 2).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    chosen = crops.var((2, 3, 4)).topk(each, 1).indices
    return crops[torch.arange(len(images), device=images.device)[:, None], chosen].flatten(0, 1)


def train_vae(
    work: Path, device: str, steps: int = 6600, batch: int = 16, kl_weight: float = 3e-4, cropped: float = 0.8
) -> None:
    """The autoencoder; for the first `cropped` share of steps on the busiest quarters of pictures."""
    pictures = load_pictures(work)
    torch.manual_seed(0)
    vae = new_vae().to(device)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng(step)
        images = as_images(pictures[np.sort(rng.choice(len(pictures), batch, replace=False))], device)
        if step < cropped * steps:
            images = busiest_crops(images, 32, 4)
        posterior = vae.encode(images).latent_dist
        output = vae.decode(posterior.sample()).sample
        error = output.float() - images
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float())
        return {"l1": error.abs().mean(), "mse": error.pow(2).mean(), "kl": kl_weight * kl.mean()}

    fit("vae", vae, loss_of, FitSettings(steps, learning_rate=2e-3, dtype=fast_dtype(device)), work)
    vae.save_pretrained(work / "vae")


def new_tokenizer() -> CLIPTokenizer:
    """A stock CLIPTokenizer: these words whole, capitals letter by letter, anything else unknown."""
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


def new_clip(vocabulary: int, width: int, layers: int, context: int) -> CLIPModel:
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
    }
    text = CLIPTextConfig(
        **tower,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    vision = CLIPVisionConfig(**tower, image_size=64, patch_size=8, projection_dim=width)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=width))


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
    clip = new_clip(len(tokenizer), width, layers, CONTEXT).to(device)
    mean, std = torch.tensor(OPENAI_CLIP_MEAN).view(3, 1, 1), torch.tensor(OPENAI_CLIP_STD).view(3, 1, 1)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((seed, step))
        indices = np.sort(rng.choice(len(pictures), batch, replace=False))
        captions = draw_captions(indices, CLIP_CAPTIONS, rng)
        tokens = tokenizer(captions, padding=True, return_tensors="pt").to(device)
        images = (as_images(pictures[indices], device) / 2 + 0.5 - mean.to(device)) / std.to(device)
        return {"contrastive": clip(**tokens, pixel_values=images, return_loss=True).loss}

    settings = FitSettings(steps, learning_rate=1e-3, weight_decay=0.05, dtype=fast_dtype(device))
    fit(name, clip, loss_of, settings, work)
    clip.save_pretrained(work / name)
    tokenizer.save_pretrained(work / name)


def train_clip_constraint(work: Path, device: str) -> None:
    train_clip(work, device, name="clip_constraint", seed=1, width=96, layers=2)


def encode_latents(work: Path, device: str, batch: int = 100) -> None:
    """Cache every training picture's latents, scaled so that the two strongest directions have unit variance."""
    pictures = load_pictures(work)
    vae = AutoencoderKL.from_pretrained(work / "vae", dtype=torch.float32).to(device)
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


class Speller(nn.Module):
    """A text encoder with a reader that names the word's letters, place by place, from its token embeddings."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        width = text_encoder.config.hidden_size
        self.text_encoder = text_encoder
        self.places = nn.Parameter(torch.randn(max(WORD_LENGTHS), width))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.letters = nn.Linear(width, len(LETTERS))

    def forward(self, prompt_embeds: Tensor) -> Tensor:
        """Token embeddings (batch, tokens, width) to logits (batch, letters of the alphabet, places)."""
        places = self.places.expand(len(prompt_embeds), -1, -1)
        return self.letters(self.attention(places, prompt_embeds, prompt_embeds)[0]).transpose(1, 2)


def train_spelling(
    work: Path,
    device: str,
    steps: int = 1000,
    batch: int = 64,
    of: str = "clip",
    name: str = "spelling",
) -> None:
    """Teach a toy CLIP's text tower which letter stands where in a word; what it says of the rest stays.

    A contrastive text encoder hardly knows the letters of its tokens, and a generator that reads it does not learn
    to write (Liu et al. 2022, Character-aware models improve visual text rendering). One that has learnt along with a
    generator forgets some of it: where --work holds `start_pipeline`, that pipeline's text encoder is taught again.
    """
    tokenizer = CLIPTokenizer.from_pretrained(work / of)
    torch.manual_seed(0)
    if of == "clip" and (work / "start_pipeline").exists():
        original = CLIPTextModel.from_pretrained(work / "start_pipeline" / "text_encoder", dtype=torch.float32)
    else:
        clip = CLIPModel.from_pretrained(work / of, dtype=torch.float32)
        original = CLIPTextModel._from_config(clip.config.text_config)
        original.load_state_dict(clip.text_model.state_dict())
    original.set_attn_implementation("eager")  # faster on CPUs
    speller = Speller(deepcopy(original)).to(device).train()
    original.to(device).requires_grad_(False)
    first_letter = tokenizer.convert_tokens_to_ids(LETTERS[0])
    spelt = [index for index in range(SCENES) if scene(index).word]

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((51, step))
        scenes = [scene(int(index)) for index in rng.choice(spelt, batch, replace=False)]
        texts = [spelled(drawn, rng) for drawn in scenes]
        words = [drawn.word.text for drawn in scenes if drawn.word]
        target = torch.tensor([[LETTERS.index(c) for c in w] + [-100] * (max(WORD_LENGTHS) - len(w)) for w in words])
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        embeds = speller.text_encoder(tokens).last_hidden_state
        moved = (embeds - original(tokens).last_hidden_state)[tokens < first_letter]
        return {
            "spelling": nn.functional.cross_entropy(speller(embeds), target.to(device)),
            "kept": moved.pow(2).mean(),
        }

    fit(name, speller, loss_of, FitSettings(steps, 5e-4, schedule="constant_with_warmup"), work)
    save_whole(speller.text_encoder, work / name)


def train_stable_diffusion(work: Path, device: str) -> None:
    """In rounds: in the first one the text encoder learns along, as in latent diffusion's first text-to-image model;
    later it is left alone, so that it does not forget how words are spelt."""
    learning = [] if (work / "start_pipeline").exists() else ["text_encoder"]
    train_generator(work, device, "pipeline", stable_diffusion, UNET_STEPS, learning)


def train_sdxl(work: Path, device: str) -> None:
    train_generator(work, device, "sdxl", sdxl, SDXL_STEPS, forgets=0.2)


def train_sd3(work: Path, device: str) -> None:
    """In rounds: the first ones with a T5 that reads as many tokens as the CLIPs, which takes a third of the time, the
    last one (there is a `start_sd3`) with all 256 that the pipeline has it read."""
    reading = {} if (work / "start_sd3").exists() else {"max_sequence_length": CONTEXT}
    train_generator(work, device, "sd3", sd3, SD3_STEPS, ["text_encoder_3"], forgets=0.2, reading=reading)


def write_prompts(work: Path, device: str) -> None:
    """Prompt files, no prompt in two of them; `words` and `unseen_words` all want a word, the latter's never shown."""
    PROMPTS.mkdir(exist_ok=True)
    taken: set[str] = set()

    def write(name: str, count: int, draw: Callable[[], str]) -> None:
        lines = list[str]()
        while len(lines) < count:
            text = draw()
            if text not in taken:
                taken.add(text)
                lines.append(text)
        (PROMPTS / f"{name}.txt").write_text("\n".join(lines) + "\n")

    counts: dict[Split, int] = {"validation": 160, "test": 160, "train": 3000}
    for split, count in counts.items():
        rng = np.random.default_rng(SPLIT_SEEDS[split])
        write(split, count, lambda split=split, rng=rng: prompt_of(sample_scene(rng, split), rng))
    for name, split, count in (("unseen_words", "validation", 160), ("words", "train", 1500)):
        rng = np.random.default_rng((SPLIT_SEEDS[split], 1))
        write(name, count, lambda split=split, rng=rng: prompt_with_word(split, rng))


def prompt_with_word(split: Split, rng: np.random.Generator) -> str:
    """A short prompt with a word: outside training one that training never shows, and shapes that it does."""
    drawn = sample_scene(rng, "train", word_probability=1.0)
    word = drawn.word
    while split != "train" and not (word and is_unseen_word(word.text)):
        word = sample_word(rng, split)
    return short(replace(drawn, word=word), say_word=True)


def pack(work: Path, device: str) -> None:
    """Whatever has been trained so far, in fp16, into the package."""
    for name in PACKED:
        if (work / name).is_dir():
            shutil.rmtree(WEIGHTS / name, ignore_errors=True)
            shutil.copytree(work / name, WEIGHTS / name)
        elif (work / name).exists():
            shutil.copy(work / name, WEIGHTS / name)
    halve(WEIGHTS)


def halve(folder: Path) -> None:
    """Turn all weights below a folder into fp16; configs say float32, so that stock loading agrees."""
    for path in folder.rglob("*.safetensors"):
        save_file({key: value.half() for key, value in load_file(path).items()}, path, metadata={"format": "pt"})
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        if "model_type" in config:  # transformers loads in the dtype that its config names, diffusers in float32
            path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")


def report(work: Path, device: str) -> None:
    """Measure what is packed, and nothing else, and keep the tables that stand in the toybox's README."""
    prompts = read_prompts(PROMPTS / "validation.txt")[:64]
    editions = {}
    for name in ("pipeline", "sdxl", "sd3"):
        if (WEIGHTS / name).exists():
            model = Model(load_pipeline(str(WEIGHTS / name), device))
            editions[name] = measure_toybox.generator_figures(model, prompts, (0, 1, 2))
            editions[name] |= measure_toybox.swap_figures(model, prompts, (0,))
    figures = dict.fromkeys(figure for found in editions.values() for figure in found)
    rows = [[figure, *(found.get(figure) for found in editions.values())] for figure in figures]
    show("toybox", "editions", ["figure", *((name, ".3f") for name in editions)], rows, store=True)
    if (WEIGHTS / "recogniser").exists():
        generate_samples(work, "unseen", Model(load_pipeline(str(WEIGHTS / "pipeline"), device)), unseen=True)
        measure_toybox.show_scorers(packed_scorers(WEIGHTS), load_rated(work, "unseen"))
        vae = AutoencoderKL.from_pretrained(WEIGHTS / "pipeline" / "vae", torch_dtype=torch.float32)
        measure_toybox.show_recogniser(load_recogniser(str(WEIGHTS / "recogniser")), vae)


WEIGHTS = Path("textcraftor/toybox/world2/weights")
PROMPTS = Path("textcraftor/toybox/world2/prompts")
PACKED = (
    *("pipeline", "sdxl", "sd3", "clip", "clip_constraint", "aesthetic_clip", "aesthetic.safetensors"),
    *("hpsv2.safetensors", "hpsv2.json", "pickscore", "imagereward", "recogniser"),
)
STAGES: dict[str, Callable[[Path, str], None]] = {
    "scenes": make_scenes,
    "vae": train_vae,
    "clip": train_clip,
    "clip_2": partial(train_clip, name="clip_2", seed=1),
    "clip_constraint": train_clip_constraint,
    "spelling": train_spelling,
    "spelling_2": partial(train_spelling, of="clip_2", name="spelling_2"),
    "latents": encode_latents,
    "pipeline": train_stable_diffusion,
    "sdxl": train_sdxl,
    "sd3": train_sd3,
    "prompts": write_prompts,
    **SCORER_STAGES,
    "pack": pack,
    "report": report,
}


def run_stages(stages: dict[str, Callable[[Path, str], None]], description: str | None, folder: str) -> None:
    """The command line of a training script: one stage or all, each skipped when it is done."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["all", *stages])
    parser.add_argument("--work", type=Path, default=Path(folder))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    for stage in stages if arguments.stage == "all" else [arguments.stage]:
        done = arguments.work / f"{stage}.done"
        if done.exists():
            print(f"{stage}: was done already; delete {done} to do it again")
            continue
        began = time.time()
        stages[stage](arguments.work, arguments.device)
        if not processes_of_this_run().is_main_process:
            continue
        done.write_text(json.dumps({"seconds": round(time.time() - began)}))
        print(f"{stage}: done in {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    run_stages(STAGES, __doc__, ".toybox")
