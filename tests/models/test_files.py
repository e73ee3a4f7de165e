"""Single-file checkpoints: known by the names of their tensors, anything else refused in one line."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from random_models import tiny_layout
from safetensors.torch import load_file, save_file

from tests.models.single_files import write_single_file
from textcraftor.errors import UsageError
from textcraftor.models import single_file
from textcraftor.models.layout import build_pipeline, read_layout
from textcraftor.models.loading import load_pipeline
from textcraftor.models.model import Model
from textcraftor.models.single_file import kind_of, tensor_names

# One tensor of each part as published: Stable Diffusion 1.5 and 2.1, SDXL, SD 3.5 medium, FLUX.1 dev, and ComfyUI's.
UNET = "model.diffusion_model.input_blocks.0.0.weight"
VAE = "first_stage_model.decoder.conv_in.weight"
FILES = {
    "sd1": ([UNET, VAE, "cond_stage_model.transformer.text_model.final_layer_norm.weight"], "StableDiffusionPipeline"),
    "sd2": ([UNET, VAE, "cond_stage_model.model.ln_final.weight"], "StableDiffusionPipeline"),
    "sdxl": (
        [
            UNET,
            VAE,
            "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
            "conditioner.embedders.1.model.ln_final.weight",
        ],
        "StableDiffusionXLPipeline",
    ),
    "sd3": (
        [
            VAE,
            "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
            "text_encoders.clip_l.transformer.text_model.final_layer_norm.weight",
        ],
        "StableDiffusion3Pipeline",
    ),
    "flux": (["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"], "FluxPipeline"),
    "comfy": (
        ["model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "vae.decoder.conv_in.weight"],
        "FluxPipeline",
    ),
}


def written(file: Path, names: list[str]) -> Path:
    save_file({name: torch.zeros(4, 4, 1, 1) for name in names}, file)
    return file


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_is_known_by_its_tensors(name, tmp_path):
    names, kind = FILES[name]
    file = written(tmp_path / "model.safetensors", names)
    assert kind_of(file, tensor_names(file))[0] == kind


def test_other_files_are_refused(tmp_path):
    """A language model's, a refiner's UNet alone, and pickles, which are never opened."""
    for names in (["model.layers.0.self_attn.q_proj.weight"], [UNET, VAE]):
        with pytest.raises(UsageError, match="is a checkpoint of no family that is known here"):
            load_pipeline(str(written(tmp_path / "model.safetensors", names)))
    for name in ("model.ckpt", "model.pt", "model.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
        with pytest.raises(UsageError, match=r"is not a .safetensors file: convert it, pickles can run code"):
            load_pipeline(str(tmp_path / name))
        assert not (tmp_path / "exploded").exists()


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (["model.layers.0.self_attn.q_proj.weight"], "is a checkpoint of no family that is known here"),
        (b"no tensors at all", "model.path"),
        (FILES["sd1"][0], "Failed to load CLIPTextModel. Weights for this component appear to be missing"),
        (FILES["flux"][0], "settings and tokenizers that a single file does not hold come from model.config="),
    ],
)
def test_a_file_that_cannot_be_loaded_is_one_line(content, line, tmp_path):
    file = tmp_path / "x.safetensors"
    written(file, content) if isinstance(content, list) else file.write_bytes(content)
    with pytest.raises(UsageError, match=line) as refused:
        load_pipeline(str(file))
    assert len(str(refused.value).splitlines()) == 1
    assert str(file) in str(refused.value)


@pytest.fixture
def small_layouts(monkeypatch):
    """The published layouts with small widths, all of CLIP's words among them, stand for the published ones."""

    def layout(name: str):
        small, published = tiny_layout(name), read_layout(name)
        for part, config in small.items():
            if part.startswith("text_encoder"):
                own = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
                config |= {key: published[part][key] for key in own if key in published[part]}
        if "text_encoder_2" in small:  # diffusers tells the two apart by their widths
            small["text_encoder_2"]["hidden_size"] = 2 * small["text_encoder"]["hidden_size"]
            small["unet"]["cross_attention_dim"] = 3 * small["text_encoder"]["hidden_size"]
        return small

    monkeypatch.setattr(single_file, "read_layout", layout)
    return layout


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_a_single_file_gives_the_parts_that_went_into_it_offline(name, small_layouts, tmp_path):
    """Every weight, the published tokenizer with its padding, and the scheduler."""
    layout = small_layouts(name)
    paddings = {
        part: "!" if config["hidden_act"] == "gelu" else "<|endoftext|>"
        for part, config in layout.items()
        if "text_encoder" in part
    }
    tokenizers = {
        part.replace("text_encoder", "tokenizer"): single_file.clip_tokenizer(layout[part]) for part in paddings
    }
    torch.manual_seed(0)
    whole = build_pipeline(layout, tokenizers)
    found = load_pipeline(str(write_single_file(whole, tmp_path / "x.safetensors")))
    assert type(found) is type(whole)
    for part, module in whole.components.items():
        if isinstance(module, torch.nn.Module):
            ours, theirs = getattr(found, part).state_dict(), module.state_dict()
            assert ours.keys() == theirs.keys(), part
            assert all(torch.equal(value, ours[key]) for key, value in theirs.items()), part
    assert {**found.scheduler.config}.items() >= {k: v for k, v in layout["scheduler"].items() if k[0] != "_"}.items()
    for part, padding in paddings.items():
        tokenizer = getattr(found, part.replace("text_encoder", "tokenizer"))
        ids = tokenizer("A photo of a cat", padding="max_length").input_ids
        end = tokenizer.convert_tokens_to_ids(padding)
        assert ids == [49406, 320, 1125, 539, 320, 2368, 49407, *[end] * 70]
        assert end == (0 if padding == "!" else 49407)


def test_a_file_that_says_that_it_predicts_v_is_taken_by_its_word(small_layouts, tmp_path):
    """As NoobAI's: without it the pictures are noise."""
    layout = small_layouts("sdxl")
    tokenizers = {name: single_file.clip_tokenizer(layout["text_encoder"]) for name in ("tokenizer", "tokenizer_2")}
    whole = build_pipeline(layout, tokenizers)
    config = load_pipeline(
        str(write_single_file(whole, tmp_path / "x.safetensors", "v_pred", "ztsnr"))
    ).scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert Model(load_pipeline(str(tmp_path / "x.safetensors"))).noise_schedule.level(999.0) == (0.0, 1.0)


def test_a_file_that_lacks_a_tensor_is_named_with_it(small_layouts, tmp_path):
    layout = small_layouts("sd15")
    whole = build_pipeline(layout, {"tokenizer": single_file.clip_tokenizer(layout["text_encoder"])})
    file = write_single_file(whole, tmp_path / "x.safetensors")
    state = load_file(file)
    del state["model.diffusion_model.out.2.bias"]
    save_file(state, file)
    with pytest.raises(UsageError, match=r"lacks tensors of the pipeline: take a whole checkpoint"):
        load_pipeline(str(file))


def test_clips_words_have_their_published_numbers():
    """Of OpenAI's own tokenizer, with punctuation, digits, accents and signs that are no words."""
    tokenizer = single_file.clip_tokenizer({"hidden_act": "quick_gelu", "max_position_embeddings": 77})
    assert len(tokenizer) == 49408
    known = [320, 1125, 267, 539, 320, 15304, 568, 272, 273, 257, 1929, 748, 162, 120, 95, 35751, 501]
    assert tokenizer("A Photo, of a café's 12\" dog!! 漢字").input_ids == [49406, *known, 49407]


def test_fetch_asks_for_the_settings_that_a_single_file_lacks(tmp_path):
    """Those of Stable Diffusion and SDXL come with us; for others diffusers names the repository."""
    for name, repository in (("sd1", None), ("sdxl", None), ("flux", "black-forest-labs/FLUX.1-schnell")):
        names = [*FILES[name][0], *(["double_blocks.0.img_attn.norm.key_norm.scale"] if name == "flux" else [])]
        file = written(tmp_path / f"{name}.safetensors", names)
        assert single_file.settings_repository(file) == repository
