"""Single-file checkpoints: known by the names of their tensors, anything else refused in one line."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from random_models import tiny_layout
from safetensors.torch import load_file, save_file

from textcraftor.errors import UsageError
from textcraftor.models import single_file
from textcraftor.models.layout import build_pipeline, read_layout
from textcraftor.models.loading import load_pipeline
from textcraftor.models.model import Model, family_of
from textcraftor.models.single_file import kind_of, tensors_of

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


def write_single_file(pipeline, file: Path, *more: str) -> Path:
    """A pipeline as one file; `more` are names of empty tensors that say something."""
    names = family_of(type(pipeline).__name__).single_file_names(pipeline)
    parts = [naming.tensors(getattr(pipeline, part)) for part, naming in names.items()]
    tensors = {key: value for part in parts for key, value in part.items()} | {name: torch.zeros(0) for name in more}
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, file)
    return file


def written(file: Path, names: list[str]) -> Path:
    save_file({name: torch.zeros(4, 4, 1, 1) for name in names}, file)
    return file


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_is_known_by_its_tensors(name, tmp_path):
    names, kind = FILES[name]
    file = written(tmp_path / "model.safetensors", names)
    assert kind_of(file, tensors_of(file))[0] == kind


OTHERS = [
    (["model.layers.0.self_attn.q_proj.weight"], "a checkpoint of no family that is known here"),
    ([UNET, VAE], "a denoiser without the text encoders"),
    ([UNET, VAE, "conditioner.embedders.0.model.ln_final.weight"], "SDXL's refiner"),
    (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "a denoiser in diffusers' layout"),
    (["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], "a LoRA"),
    (["unet.down_blocks.1.attentions.0.to_q.lora_A.weight"], "a LoRA"),
    (["base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_B.weight"], "a LoRA"),
    (["lora_te1_text_model_encoder_layers_0_mlp_fc1.hada_w1_a"], "a LoRA"),
    ([VAE], "a VAE"),
    (["decoder.conv_in.weight", "encoder.conv_in.weight"], "a VAE"),
    (["text_model.encoder.layers.0.mlp.fc1.weight"], "a text encoder"),
    (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "a text encoder"),
    (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
    (["emb_params"], "a textual inversion"),
    (["double_blocks.0.img_attn.qkv.weight", "double_stream_modulation_img.lin.weight"], "a single file of FLUX.2"),
]


def test_other_files_are_refused(tmp_path):
    """By what they are; and pickles, which are never opened."""
    for names, what in OTHERS:
        with pytest.raises(UsageError, match=rf"model.safetensors is {what}.*: give a whole text-to-image checkpoint"):
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


@pytest.fixture
def small_file(small_layouts, tmp_path):
    """A Stable Diffusion of small widths, as a pipeline and as a file."""
    layout = small_layouts("sd15")
    whole = build_pipeline(layout, {"tokenizer": single_file.clip_tokenizer(layout["text_encoder"])})
    return whole, write_single_file(whole, tmp_path / "x.safetensors")


@pytest.mark.parametrize("channels", [5, 8, 9])
def test_a_model_that_reads_a_mask_or_a_picture_as_well_is_named(channels, small_file):
    state = load_file(small_file[1])
    save_file(state | {UNET: torch.zeros(len(state[UNET]), channels, 3, 3)}, small_file[1])
    with pytest.raises(
        UsageError, match=rf"x.safetensors reads {channels} channels .* read 4, as models for inpainting"
    ):
        load_pipeline(str(small_file[1]))


def test_weights_of_8_bits_are_refused_and_those_of_16_are_not(small_file):
    """diffusers would take them without their scales."""
    state = load_file(small_file[1])
    for dtype in (torch.float16, torch.bfloat16):
        save_file({key: value.to(dtype) for key, value in state.items()}, small_file[1])
        assert load_pipeline(str(small_file[1])).unet.dtype == torch.float32
    for dtype, name in ((torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")):
        save_file(state | {UNET: state[UNET].to(dtype)}, small_file[1])
        with pytest.raises(UsageError, match=rf"x.safetensors holds weights in {name} \({UNET}\), too coarse"):
            load_pipeline(str(small_file[1]))


def test_a_folder_of_settings_must_hold_all_of_a_pipeline_of_the_files_kind(small_file, tmp_path):
    """For a tokenizer that was missing diffusers made one of two words."""
    whole, file = small_file
    folder = tmp_path / "settings"
    whole.save_pretrained(folder)
    assert len(load_pipeline(str(file), config=str(folder)).tokenizer) == 49408
    for part in ("tokenizer", "scheduler", "unet"):
        (folder / part).rename(tmp_path / part)
        with pytest.raises(UsageError, match=rf"model.config={folder} lacks the folder {part}: copy it"):
            load_pipeline(str(file), config=str(folder))
        (tmp_path / part).rename(folder / part)
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"))
    with pytest.raises(
        UsageError, match=r"is a folder of StableDiffusionXLPipeline, and .* of StableDiffusionPipeline"
    ):
        load_pipeline(str(file), config=str(folder))
    for config, line in ((tmp_path, "is a folder of no pipeline"), (tmp_path / "nowhere", "does not exist")):
        with pytest.raises(UsageError, match=rf"model.config.*{config} {line}"):
            load_pipeline(str(file), config=str(config))


def test_weights_of_another_shape_than_the_settings_say_are_one_plain_line(small_file):
    file = small_file[1]
    state = load_file(file)
    key = next(key for key in state if key.endswith("final_layer_norm.weight"))
    save_file(state | {key: torch.zeros(3)}, file)
    with pytest.raises(
        UsageError, match=r"has \[3\] for the shape of final_layer_norm.weight, .* say \[32\]: give"
    ) as refused:
        load_pipeline(str(file))
    assert "http" not in str(refused.value)


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
