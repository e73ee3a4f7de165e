"""Every exported file, loaded by the stock loaders: the same embeddings, the same denoiser, no key lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import StableDiffusionPipeline
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextModel

from tests.conftest import PROMPTS, WEIGHTS, load
from tests.inference.test_mix import LORA, make_run, pipeline
from textcraftor.errors import UsageError
from textcraftor.inference import export, formats
from textcraftor.inference.mix import Mix
from textcraftor.models.run_record import RunRecord

TEXT_LORA = {**LORA, "target_modules": ["q_proj", "out_proj", "fc1"]}
UNET_LORA = {**LORA, "target_modules": ["to_q", "to_v", "to_out.0"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "full": make_run(folder / "full", 1, {"text_encoder": None, "denoiser": None}),
        "lora": make_run(folder / "lora", 2, {"text_encoder": TEXT_LORA, "denoiser": UNET_LORA}),
    }


def exported(configure, folder: Path, *overrides: str) -> Path:
    export.run(configure("export", *overrides, f"run_dir={folder}"), folder)
    return folder


@torch.no_grad()
def seen(encoder: torch.nn.Module, unet: torch.nn.Module, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings of three prompts and what the denoiser makes of them."""
    tokens = tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    embeds = encoder(tokens).last_hidden_state
    latents = torch.randn(3, unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    return embeds, unet(latents, torch.tensor(500), encoder_hidden_states=embeds).sample


def wanted(mix: Mix) -> tuple[torch.Tensor, torch.Tensor]:
    model = load()
    mix.load_denoiser(model)
    (name,) = mix.schedule(model).late
    return seen(model.encoders(name)["text_encoder"], model.denoiser, model.pipeline.tokenizer)


def assert_same(found, expected, atol: float = 1e-6) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def assert_no_path(folder: Path) -> None:
    """No JSON that is shared, in files of its own or in the headers of others, names a place on this disk."""
    files = [*folder.rglob("*.json"), *folder.rglob("*.safetensors")]
    assert any(file.name == "model_index.json" or file.suffix == ".safetensors" for file in files)
    for file in files:
        if file.suffix == ".json":
            text = file.read_text()
        else:
            with safe_open(file, "pt") as stored:
                text = json.dumps(stored.metadata() or {})
        assert not re.search(rf'"[^"]*({re.escape(str(WEIGHTS))}|{re.escape(str(folder.parent))}|[A-Z]:\\\\)', text), (
            file
        )
        assert not re.search(r'"(~?/|\.\.?/)\w', text), file


def test_a_whole_encoder_and_unet_come_back(runs, configure, tmp_path):
    folder = exported(configure, tmp_path / "x", f"tuned.a={runs['full']}", "formats=[diffusers,webui,pipeline]")
    expected, base = wanted(Mix({"a": runs["full"]})), pipeline()
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    unet = type(base.unet).from_pretrained(folder / "unet")
    assert_same(seen(encoder, unet, base.tokenizer), expected)
    assert_no_path(folder)
    whole = StableDiffusionPipeline.from_pretrained(folder / "pipeline", safety_checker=None)
    assert_same(seen(whole.text_encoder, whole.unet, whole.tokenizer), expected)
    state = load_file(folder / "text_encoder.safetensors")
    assert all(key.startswith("text_model.") for key in state)
    bare = CLIPTextModel(base.text_encoder.config)
    own = {key if key.startswith("text_model.") else f"text_model.{key}": key for key in bare.state_dict()}
    assert own.keys() - {key for key in own if "position_ids" in key} == state.keys()
    bare.load_state_dict({own[key]: value for key, value in state.items()}, strict=False)
    assert_same(seen(bare.eval(), unet, base.tokenizer), expected)


def test_adapters_come_back_under_kohyas_names_and_diffusers(runs, configure, tmp_path):
    """Their alpha is not their rank: a layout that loses it halves or doubles what they change."""
    folder = exported(configure, tmp_path / "x", f"tuned.a={runs['lora']}")
    expected, tokenizer = wanted(Mix({"a": runs["lora"]})), pipeline().tokenizer
    state = load_file(folder / "lora.safetensors")
    assert {key.split("_")[1] for key in state} == {"te", "unet"}
    assert {key.rpartition(".")[0].split(".")[0] + ".alpha" for key in state} <= state.keys()
    about = described_in(folder / "lora.safetensors")
    assert (about["ss_network_dim"], about["ss_network_alpha"]) == (str(LORA["rank"]), f"{LORA['alpha']:g}")
    assert (about["ss_base_model_version"], about["ss_v2"]) == ("sd_v1", "False"), "A1111 shows it for SD 1 alone"
    for files in ([folder / "lora.safetensors"], [folder / "text_encoder_lora", folder / "unet_lora"]):
        pipe = pipeline()
        for file in files:
            pipe.load_lora_weights(file)
        assert_same(seen(pipe.text_encoder, pipe.unet, tokenizer), expected, 1e-5)
    assert_no_path(folder)
    merged = load_file(folder / "text_encoder.safetensors")
    assert not any("lora" in key for key in merged)


def test_a_model_without_an_original_layout_gives_no_checkpoint(runs, configure, tmp_path):
    """The toybox's UNet reads more than CompVis' code has a place for: refused, and nothing is left behind."""
    with pytest.raises(UsageError, match=r"formats=\[checkpoint\]: there is no single-file layout for this Stable"):
        exported(configure, tmp_path / "x", f"tuned.a={runs['lora']}", "formats=[checkpoint]")
    assert not list(tmp_path.iterdir())


def described_in(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as stored:
        return stored.metadata()


def test_a_merged_mix_is_one_encoder(runs, configure, tmp_path):
    chosen = ("merge=true", "mix.a=.5", "denoiser.path=original")
    folder = exported(configure, tmp_path / "x", f"tuned.a={runs['lora']}", *chosen)
    expected = wanted(Mix({"a": runs["lora"]}, {"a": 0.5}, merge=True, denoiser="original"))
    base = pipeline()
    found = seen(CLIPTextModel.from_pretrained(folder / "text_encoder"), base.unet, base.tokenizer)
    assert_same(found, expected)
    assert "0.5 a + 0.5 original" in (folder / "README.md").read_text()
    again = Mix({"b": folder})
    assert_same(wanted(again), expected)


def test_the_card_says_how_a_finished_run_went(configure, tmp_path):
    """From the run's own files, which are data: settings as they were, and each measure before and after."""
    run = make_run(tmp_path / "run", 3, {"text_encoder": LORA})
    settings = configure("train", "rewards=aesthetic", "prompts.path=my prompts.txt")
    (run / "config.yaml").write_text(OmegaConf.to_yaml(settings, resolve=True))
    change = {"mean": 0.25, "low": 0.125, "high": 0.375, "n": 5}
    summary = {"steps": 7, "batch_size": 3, "prompts": 5, "seeds": [0, 1], "difference": {"aesthetic": change}}
    summary["difference"]["clip"] = {"mean": 0.5, "low": None, "high": None}  # no interval, and of old, without n
    summary |= {"before": {"aesthetic": 5.0, "clip": 0.5}, "after": {"aesthetic": 5.25, "clip": 1.0}}
    (run / "summary.json").write_text(json.dumps(summary))
    card = (exported(configure, tmp_path / "x", f"tuned.a={run}") / "README.md").read_text()
    assert "| prompts | my prompts.txt |" in card
    assert "| steps, prompts a step | 7, 3 |" in card
    assert "| aesthetic | 5.0000 | 5.2500 | +0.2500 | [+0.1250, +0.3750] | 5 |" in card
    assert "| clip | 0.5000 | 1.0000 | +0.5000 | none |  |" in card


def test_what_is_exported_keeps_the_schedule_it_was_tuned_with(configure, tmp_path):
    late = {"switch_timestep": 400, "late": {"tuned": 1.0}, "early": {"original": 1.0}}
    run = make_run(tmp_path / "late", 3, {"text_encoder": None}, late)
    folder = exported(configure, tmp_path / "x", f"tuned.a={run}")
    assert RunRecord.read(folder).conditioning == late
    assert "the timesteps up to 400" in (folder / "README.md").read_text()


def test_a_lost_key_is_loud_and_leaves_nothing(runs, configure, tmp_path, monkeypatch):
    save_file = formats.save_file

    def losing(state, file, metadata):
        save_file(dict(list(state.items())[:-1]), file, metadata=metadata)

    monkeypatch.setattr(formats, "save_file", losing)
    with pytest.raises(
        RuntimeError, match=r"text_encoder.safetensors: 1 keys do not come back as they were, text_model"
    ):
        exported(configure, tmp_path / "x", f"tuned.a={runs['full']}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "there is nothing tuned to export"),
        (["tuned.a=LORA", "mix.a=.5"], r"the mix 0.5 a \+ 0.5 original has several encoders, .* merge=true"),
        (["tuned.a=FULL", "formats=[kohya]"], r"nothing here was tuned by LoRA alone"),
        (
            ["tuned.a=FULL", "formats=[onnx]"],
            r"formats=\['onnx'\] must be of diffusers, webui, kohya, checkpoint, pipeline",
        ),
        (["tuned.a=FULL", "push_to_hub=me"], r"push_to_hub=me must be owner/name"),
        (["tuned.a=FULL", "run_dir=FULL"], r"is not empty: choose another run_dir"),
    ],
)
def test_what_cannot_be_exported_is_refused(runs, configure, tmp_path, overrides, said):
    places = [o.replace("LORA", str(runs["lora"])).replace("FULL", str(runs["full"])) for o in overrides]
    config = configure("export", f"run_dir={tmp_path / 'x'}", *places)
    with pytest.raises(UsageError, match=said):
        export.check(config, Path(config.run_dir))


def test_the_folder_is_what_is_pushed(runs, configure, tmp_path, monkeypatch):
    """No hub is reached here: what would be sent is the folder that was checked, to the repository that was named."""
    sent = []
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda repo, **options: sent.append((repo, options)))
    monkeypatch.setattr(huggingface_hub, "upload_folder", lambda **options: sent.append(options))
    folder = exported(configure, tmp_path / "x", f"tuned.a={runs['full']}", "push_to_hub=me/mine")
    assert sent[0] == ("me/mine", {"exist_ok": True})
    assert sent[1]["repo_id"] == "me/mine"
    assert sent[1]["folder_path"] == folder
