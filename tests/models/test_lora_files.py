"""Adapters from elsewhere: what a file says beside two matrices a layer is applied as stock loaders do, or refused."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from tests.conftest import PROMPTS, WEIGHTS, load
from textcraftor.errors import UsageError
from textcraftor.inference.mix import Mix
from textcraftor.models.run_record import Base, RunRecord
from textcraftor.models.saving import LORA_FILE, save_lora
from textcraftor.models.tuned import copy_part, load_denoiser, load_text_encoders
from textcraftor.models.tuning import add_learners

TEXT, UNET = "text_encoder_lora", "unet_lora"
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
State = dict[str, torch.Tensor]


def tuned(folder: Path, targets: dict[str, list[str]]) -> Path:
    """The folder of a run of adapters that moved at random."""
    model = load()
    lora = {part: {"rank": 2, "alpha": 4.0, "target_modules": names} for part, names in targets.items()}
    learners = add_learners(model, {part: {"lora": one, "lr": 1e-4, "span": [0, 1]} for part, one in lora.items()})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for learner in learners:
            for parameter in learner.parameters:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    for learner in learners:
        learner.save(folder)
    parts = {learner.component: "lora" for learner in learners}
    weights = {"tuned" if "text_encoder" in targets else "original": 1.0}
    schedule = {"switch_timestep": 999, "late": weights, "early": weights}
    RunRecord("StableDiffusionPipeline", Base.of({"path": "base"}), parts, schedule).write(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "run"
    return tuned(folder, {"text_encoder": ["q_proj", "fc1"], "denoiser": ["to_q", "to_out.0"]})


def with_tensor(name: str, like: str = "lora_B") -> Callable[[State], State]:
    """Put one more tensor in a file."""
    return lambda state: state | {name: next(one for key, one in state.items() if like in key).clone()}


def under_kohyas_names(state: State) -> State:
    """Half of a file as kohya would name it."""
    layer = next(key for key in state if "lora_A" in key).removesuffix(".lora_A.weight")
    kohya = "lora_unet_" + layer.removeprefix("unet.").replace(".", "_")
    down, up = (state.pop(f"{layer}.lora_{end}.weight") for end in "AB")
    return state | {f"{kohya}.lora_down.weight": down, f"{kohya}.lora_up.weight": up}


REFUSED = {
    "DoRA of kohya": (UNET, with_tensor(f"unet.{LAYER}.dora_scale"), r"to_q.dora_scale is the magnitude of a DoRA"),
    "DoRA of peft": (
        UNET,
        with_tensor(f"unet.{LAYER}.lora_magnitude_vector"),
        r"to_q.lora_magnitude_vector is the magnitude of a DoRA.*: merge the adapter into its base model",
    ),
    "LoHa": (UNET, with_tensor("lora_unet_mid_block.hada_w1_a"), r"hada_w1_a is a matrix of a LoHa"),
    "LoKr": (TEXT, with_tensor("lora_te_text_model.lokr_w2"), r"lokr_w2 is a matrix of a LoKr"),
    "IA3": (UNET, with_tensor("lora_unet_mid_block.on_input"), r"on_input is of an IA3"),
    "LoCon in Tucker form": (UNET, with_tensor("lora_unet_x.lora_mid.weight"), r"is the third matrix of a LoCon"),
    "whole differences": (UNET, with_tensor("lora_unet_conv_in.diff"), r"conv_in.diff is a difference of whole"),
    "a bias of an adapter": (UNET, with_tensor(f"unet.{LAYER}.lora_B.bias"), r"lora_B.bias is a bias"),
    "a bias of a layer": (TEXT, with_tensor("text_encoder.fc1.bias"), r"text_encoder.fc1.bias is a bias"),
    "learned words": (TEXT, with_tensor("bundle_emb.word.string_to_param.*"), r"bundle_emb.* is unknown"),
    "a text encoder's in a denoiser's file": (
        UNET,
        with_tensor("text_encoder.text_model.x.q_proj.lora_A.weight"),
        r"x.q_proj.lora_A.weight is for a text encoder, .* save the tensors of the unet to a file of their own",
    ),
    "a text encoder's of kohya": (
        UNET,
        lambda state: {"lora_te1_x.lora_up.weight": next(iter(state.values())).clone()},
        r"lora_te1_x.lora_up.weight is for a text encoder",
    ),
    "a denoiser's in a text encoder's file": (
        TEXT,
        with_tensor(f"unet.{LAYER}.lora_A.weight"),
        r"to_q.lora_A.weight is for a denoiser, .* the text_encoder alone",
    ),
    "two namings": (UNET, under_kohyas_names, r"lora_unet_.* has one of kohya's names and unet.* one of diffusers'"),
}
MISFITS = {
    "another encoder's": (
        TEXT,
        with_tensor("text_encoder_2.x.lora_A.weight"),
        r"text_encoder_2.x.lora_A.weight is not for the text_encoder",
    ),
    "another encoder's of kohya": (
        TEXT,
        lambda state: {
            f"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_{end}.weight": torch.ones(2, 2)
            for end in ("down", "up")
        },
        r"lora_te2_.* is not for the text_encoder",
    ),
    "no part's name": (UNET, with_tensor(f"{LAYER}.lora_A.weight"), r"to_q.lora_A.weight is not for the unet"),
    "a tensor that is there twice": (
        UNET,
        lambda state: (
            state | {key.replace("lora_A", "lora.down"): one.clone() for key, one in state.items() if "lora_A" in key}
        ),
        r"is in the file twice, under names of two kinds",
    ),
    "an alpha of no layer": (
        UNET,
        lambda state: state | {"unet.conv_in.alpha": torch.tensor(4.0)},
        r"conv_in has an alpha and no matrices",
    ),
    "no layer of the model": (
        UNET,
        lambda state: state | {f"unet.elsewhere.lora_{end}.weight": torch.ones(2, 2) for end in "AB"},
        r"1 of .* adapters do not fit this model, elsewhere among them",
    ),
}


def changed(run: Path, folder: Path, part: str, change: Callable[[State], State]) -> Path:
    """A copy of a run in which one file of adapters was changed."""
    shutil.copytree(run, folder, dirs_exist_ok=True)
    save_file(change(load_file(folder / part / LORA_FILE)), folder / part / LORA_FILE)
    return folder


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_applied_is_refused_by_name_before_a_model_loads(run, tmp_path, kind):
    """In a run's folder or a file; each message has the tensor, the rule and the remedy."""
    part, change, message = REFUSED[kind]
    folder = changed(run, tmp_path, part, change)
    with pytest.raises(UsageError, match=message):
        Mix({"x": folder})
    if part == UNET:
        with pytest.raises(UsageError, match=message):
            Mix(denoiser=folder / part / LORA_FILE)


@pytest.mark.parametrize("kind", MISFITS)
def test_what_fits_no_layer_of_the_part_is_refused_by_name(run, tmp_path, kind):
    part, change, message = MISFITS[kind]
    mix, model = Mix({"x": changed(run, tmp_path, part, change)}), load()
    with pytest.raises(UsageError, match=message):
        mix.load_denoiser(model) if part == UNET else mix.schedule(model)


def test_alphas_in_a_files_settings_mean_what_they_mean_to_the_stock_loader(tmp_path):
    """Patterns by a layer's end, its whole name, and the square root of ranks."""
    config = LoraConfig(
        r=4,
        lora_alpha=2,
        target_modules=["to_q", "to_v", "to_out.0"],
        use_rslora=True,
        rank_pattern={"to_v": 2},
        alpha_pattern={"to_out.0": 16, f"^{LAYER}": 32},
    )
    model, pipe = load(), StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline", safety_checker=None)
    network = copy.deepcopy(model.denoiser)
    network.add_adapter(config)
    generator = torch.Generator().manual_seed(1)
    state = get_peft_model_state_dict(network)
    state = {key: 0.1 * torch.randn(one.shape, generator=generator) for key, one in state.items()}
    pipe.save_lora_weights(tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=config.to_dict())
    pipe.load_lora_weights(tmp_path)
    pipe.fuse_lora()
    load_denoiser(model, tmp_path)
    theirs = {key.replace(".base_layer", ""): one for key, one in pipe.unet.state_dict().items()}
    for key, ours in model.denoiser.state_dict().items():
        torch.testing.assert_close(ours, theirs[key], rtol=0, atol=1e-5)
    untouched = load().denoiser.state_dict()
    for layer in (LAYER, LAYER.replace("to_q", "to_v"), LAYER.replace("to_q", "to_out.0")):
        assert not torch.allclose(untouched[f"{layer}.weight"], theirs[f"{layer}.weight"], atol=1e-3)


def peft_folder(folder: Path, **settings) -> tuple[Path, torch.nn.Module]:
    """A folder in peft's layout, and the encoder that wrote it."""
    encoder = load().pipeline.text_encoder
    encoder.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=["q_proj", "fc1"], **settings))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in encoder.named_parameters():
        if "lora_" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    encoder.save_pretrained(folder / TEXT)
    return folder, encoder.eval()


def test_alphas_in_pefts_layout(tmp_path):
    folder, encoder = peft_folder(tmp_path, use_rslora=True, alpha_pattern={"layers.1.mlp.fc1": 32})
    model = load()
    load_text_encoders(model, folder, "x")
    tokens = model.pipeline.tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        ours, theirs, original = (
            one(tokens).last_hidden_state for one in (model.encoders("x")["text_encoder"], encoder, *originals(model))
        )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (ours - original).abs().max() > 0.1, "the adapters do nothing: this proves nothing"


def originals(model) -> list[torch.nn.Module]:
    return [model.encoders()["text_encoder"]]


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")  # of biases, while the folder is written
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, r"lora_magnitude_vector is the magnitude of a DoRA"),
        ({"init_lora_weights": "pissa"}, r"adapter_config.json: init_lora_weights=pissa changes the base model's own"),
        ({"alpha_pattern": {r".*\.(0|1)\..*fc1": 3}}, r"alpha_pattern names .*it must name layers, not expressions"),
        ({"modules_to_save": ["fc2"]}, r"fc2.* is .*, and of an adapter only two matrices"),
        ({"lora_bias": True}, r"lora_B.bias is a bias"),
    ],
)
def test_settings_that_change_what_adapters_mean_are_refused(tmp_path, settings, message):
    folder, _ = peft_folder(tmp_path, **settings)
    with pytest.raises(UsageError, match=message):
        load_text_encoders(load(), folder, "x")


def test_adapters_without_attention_are_named_so_that_the_stock_loader_takes_them(tmp_path):
    """It tells peft's names by attention layers; folders of before are read, and copied under names that it takes."""
    folder, again = tuned(tmp_path / "run", {"text_encoder": ["fc1", "fc2"]}), tmp_path / "again"
    file, loaded = folder / TEXT / LORA_FILE, []
    names = {"lora_linear_layer.down": "lora_A", "lora_linear_layer.up": "lora_B"}
    state = load_file(file)
    older = tmp_path / "older" / TEXT
    older.mkdir(parents=True)
    for new, old in names.items():
        state = {key.replace(new, old): one for key, one in state.items()}
    assert state.keys() != load_file(file).keys(), "the names are the same: this proves nothing"
    save_file(state, older / LORA_FILE)
    model = load()
    load_text_encoders(model, older.parent, "x")
    copy_part(model, older, again)
    for place in (folder, again):
        pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline", safety_checker=None)
        pipe.load_lora_weights(place / TEXT)
        loaded.append(get_peft_model_state_dict(pipe.text_encoder, adapter_name="default_0"))
        assert len(loaded[-1]) == len(state)
    assert all(torch.equal(one, loaded[1][key]) for key, one in loaded[0].items())


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters")  # peft sees the loss too
def test_a_tensor_that_is_lost_in_writing_is_loud(tmp_path, monkeypatch):
    model = load()
    lora = {"rank": 2, "alpha": 4.0, "target_modules": ["to_q"]}
    (learner,) = add_learners(model, {"denoiser": {"lora": lora, "lr": 1e-4, "span": [0, 1]}})
    write = StableDiffusionPipeline.save_lora_weights

    def losing(folder, unet_lora_layers, **options):
        write(folder, unet_lora_layers=dict(list(unet_lora_layers.items())[2:]), **options)

    monkeypatch.setattr(StableDiffusionPipeline, "save_lora_weights", staticmethod(losing))
    with pytest.raises(RuntimeError, match=r"unet_lora: 2 of \d+ tensors do not come back, .*to_q.lora_A.weight"):
        save_lora(learner.module, "unet", learner.lora, StableDiffusionPipeline, tmp_path / UNET)
