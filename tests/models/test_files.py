"""Single-file checkpoints: known by the names of their tensors, anything else refused in one line."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from textcraftor.errors import UsageError
from textcraftor.models.loading import class_of_file, load_pipeline

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
    assert class_of_file(written(tmp_path / "model.safetensors", names)) == kind


def test_other_files_are_refused(tmp_path):
    """A language model's, a refiner's UNet alone, and pickles, which are never opened."""
    for names in (["model.layers.0.self_attn.q_proj.weight"], [UNET, VAE]):
        with pytest.raises(UsageError, match="is a checkpoint of no family that is known here"):
            class_of_file(written(tmp_path / "model.safetensors", names))
    for name in ("model.ckpt", "model.pt", "model.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
        with pytest.raises(UsageError, match=r"is not a .safetensors file: convert it, pickles can run code"):
            class_of_file(tmp_path / name)
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
        (
            FILES["sd1"][0],
            "model.path",
        ),  # what else it needs, as tokenizers, is on the hub, and this machine is offline
    ],
)
def test_a_file_that_cannot_be_loaded_is_one_line(content, line, tmp_path):
    file = tmp_path / "x.safetensors"
    written(file, content) if isinstance(content, list) else file.write_bytes(content)
    with pytest.raises(UsageError, match=line) as refused:
        load_pipeline(str(file))
    assert len(str(refused.value).splitlines()) == 1
    assert str(file) in str(refused.value)
