"""Every family against its stock pipeline: the chain, gradients, mixes, switching, training and exports."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
from functools import partial

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import PROMPTS, QUICK, TOYBOX
from tests.families.conftest import FAMILIES, SIZE
from textcraftor.errors import UsageError
from textcraftor.inference import export
from textcraftor.inference.generate import generate
from textcraftor.inference.mix import Mix
from textcraftor.models.model import Model
from textcraftor.models.original_names import own_names
from textcraftor.models.saving import plain_state
from textcraftor.models.tuned import read_lora
from textcraftor.models.tuning import add_learners
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.sampling.gradients import last_k
from textcraftor.sampling.regions import Region
from textcraftor.training.train import run

JOBS = [(PROMPTS[0], 3), (PROMPTS[2], 4)]
TEXTS = [prompt for prompt, _ in JOBS]


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for _, seed in JOBS]


def stock(pipe, steps: int = 4, **arguments) -> torch.Tensor:
    given = {"guidance_scale": 3.0, "height": SIZE[0], "width": SIZE[1], "num_inference_steps": steps}
    return torch.as_tensor(pipe(**given | arguments, output_type="pt", generator=generators()).images)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_pictures_equal_the_stock_pipelines(case):
    assert_same(
        generate(case.model(), JOBS, ConditioningSchedule.original(), case.sampling),
        stock(case.pipeline(), prompt=TEXTS),
    )


def test_a_negative_prompt_means_what_it_means_in_the_stock_pipeline(case):
    """Given, empty or none, which is another thing to some; models that are distilled from guidance have none."""
    model, made = case.model(), []
    if not model.guided(3.0):
        pytest.skip("this model has one branch")
    for negative in ("a large gray ring", "", None):
        sampling = case.sampling.__class__(4, 3.0, *SIZE, negative, case.scheduler)
        made.append(generate(model, JOBS, ConditioningSchedule.original(), sampling))
        many = negative if negative is None else [negative] * 2
        assert_same(made[-1], stock(case.pipeline(), prompt=TEXTS, negative_prompt=many))
    assert (made[0] - made[1]).abs().max() > 1e-3
    assert ((made[1] - made[2]).abs().max() > 1e-3) == (case.name == "sdxl")


def test_regions_blend_prompts_in_every_family(case):
    """One over the whole picture that outweighs the prompt makes the picture of its own prompt, one that repeats the
    prompt or counts nothing that of the prompt, and half a picture something between."""
    model, original = case.model(), ConditioningSchedule.original()
    everywhere, left = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0)

    def made(text: str, *regions: Region) -> torch.Tensor:
        return generate(model, [(text, 3)], original, case.sampling, regions=[regions])

    plain, other = made(TEXTS[0]), made(TEXTS[1])
    assert_same(made(TEXTS[0], Region(everywhere, TEXTS[1], 1e7)), other)
    assert_same(made(TEXTS[0], Region(left, TEXTS[0], 2.0), Region(everywhere, TEXTS[1], 0.0)), plain)
    half = made(TEXTS[0], Region(left, TEXTS[1], 1e7))
    assert min((half - one).abs().max() for one in (plain, other)) > 1e-3


def test_every_encoder_that_is_used_gets_a_gradient_and_nothing_frozen_does(case):
    """Through the last two steps and the decoder, from a mix of the original and encoders that learn."""
    model = case.model()
    tune = {part: {"lora": None, "lr": 1e-4, "span": [0, 1]} for part in FAMILIES[case.name]}
    learners = add_learners(model, tune, size=SIZE)
    chain = case.sampling.chain(model, [1, 2])
    encoded = case.sampling.encode(model, TEXTS, ["original", "tuned"])
    schedule = ConditioningSchedule(1000, {"original": 0.4, "tuned": 0.6}, {"original": 1.0})
    latents = last_k(chain, chain.start(), partial(schedule.at, encoded), k=2)
    model.decode(latents).square().mean().backward()
    for learner in learners:
        assert all(parameter.grad is not None for parameter in learner.parameters), learner.part
        assert sum(parameter.grad.abs().sum() for parameter in learner.parameters) > 0, learner.part
    frozen = [model.denoiser, model.vae, *model.encoders("original").values()]
    assert not [name for part in frozen for name, one in part.named_parameters() if one.grad is not None]
    unused = {learner.part: len(learner.unused) for learner in learners}
    if case.name == "sdxl":
        last = {name for name in learners[0].unused if "layers.2." in name or "final_layer_norm" in name}
        assert last == learners[0].unused != frozenset(), "encoder 1 is read before its last layer"
        assert unused["text_encoder_2"] == 0
    if case.name == "flux2_klein":
        assert any("layers.27." in name for name in learners[0].unused)


@pytest.mark.parametrize("options", [{}, {"weights": {"a": 0.6}}, {"weights": {"a": 0.5}, "merge": True}], ids=str)
def test_a_mix_in_the_stock_pipeline_makes_our_pictures(case, options):
    mix, model, pipe = Mix({"a": case.run}, **options), case.model(), case.pipeline()
    before = {name: value.clone() for name, value in pipe.text_encoder.state_dict().items()}
    ours = generate(model, JOBS, mix.schedule(model), case.sampling)
    theirs = stock(pipe, **mix.inputs(pipe, TEXTS, num_inference_steps=4, guidance_scale=3.0))
    assert_same(ours, theirs)
    untuned = generate(model, JOBS, ConditioningSchedule.original(), case.sampling)
    assert (ours - untuned).abs().max() > 1e-2, "the tuned encoders make the same pictures: the test proves nothing"
    assert all(torch.equal(value, before[name]) for name, value in pipe.text_encoder.state_dict().items())


READING = {
    "sdxl": {"clip_skip": 1},
    "sd35_medium": {"clip_skip": 1, "max_sequence_length": 7},
    "flux1_dev": {"max_sequence_length": 7},
    "flux2_klein": {"max_sequence_length": 16, "text_encoder_out_layers": (9, 18, 18)},
}


def test_how_prompts_are_read_is_as_the_stock_pipeline_means_it(case):
    """By arguments that change the embeddings: as if the tuned encoders stood in the pipeline itself."""
    if case.name not in READING:
        pytest.skip("diffusers' own reading is broken with transformers 5; see the tests of the stock pipeline")
    pipe, model, mix = case.pipeline(), case.model(), Mix({"a": case.run})
    asked = READING[case.name] | {"num_inference_steps": 4, "guidance_scale": 3.0}
    ours, plain = (mix.inputs(pipe, TEXTS, **one) for one in (asked, {"num_inference_steps": 4, "guidance_scale": 3.0}))
    pictures = stock(pipe, **ours)
    mix.schedule(model)
    for part, encoder in model.encoders("a").items():
        setattr(pipe, part, encoder)
    assert_same(pictures, stock(pipe, prompt=TEXTS, **asked))
    assert plain["prompt_embeds"].shape != ours["prompt_embeds"].shape or not torch.equal(
        plain["prompt_embeds"], ours["prompt_embeds"]
    )
    if len(model.text_encoders) > 1:
        with pytest.raises(UsageError, match="prompt_2=x: all text encoders of a mix read the same prompt"):
            mix.inputs(pipe, TEXTS, prompt_2="x")


def test_switching_by_noise_level_in_the_stock_pipeline(case):
    """Where its callback can change what the encoders say; where it cannot, that is refused by name."""
    mix, model, pipe = Mix({"a": case.late}), case.model(), case.pipeline()
    if case.name == "flux1_dev":  # its CLIP says a pooled embedding alone
        with pytest.raises(UsageError, match="FluxPipeline cannot change pooled_prompt_embeds between steps"):
            mix.inputs(pipe, TEXTS, num_inference_steps=4)
        return
    ours = generate(model, JOBS, mix.schedule(model), case.sampling)
    given = {"num_inference_steps": 4, "height": SIZE[0], "width": SIZE[1], "guidance_scale": 3.0}
    assert_same(ours, stock(pipe, **mix.inputs(pipe, TEXTS, **given)))
    everywhere = generate(model, JOBS, ConditioningSchedule(1000, {"a": 1.0}, {"a": 1.0}), case.sampling)
    assert (ours - everywhere).abs().max() > 1e-3, "the switch changes nothing: the test proves nothing"


SIBLINGS = {
    "sd15": ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    "sdxl": ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    "sd35_medium": ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    "flux1_dev": ("FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    "flux2_klein": ("Flux2KleinInpaintPipeline",),
}
CANNOT_SWITCH = ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline", "FluxImg2ImgPipeline")


def sibling(case, name: str):
    """Another stock pipeline of the family, and the arguments that it needs beside the prompt."""
    pipe = getattr(diffusers, name).from_pipe(case.pipeline())
    pipe.set_progress_bar_config(disable=True)
    picture = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64).expand(2, -1, -1, -1)
    given = {"image": picture, "height": 64, "width": 64}
    if "Inpaint" in name:
        mask = torch.zeros(2, 1, 64, 64)
        mask[..., 32:] = 1
        given |= {"mask_image": mask}
    elif name.startswith("StableDiffusion") and not name.startswith("StableDiffusion3"):
        del given["height"], given["width"]
    return pipe, given


@pytest.mark.parametrize("index", [0, 1])
def test_a_mix_in_image_to_image_and_inpainting(case, index):
    """As if the tuned encoders stood in the pipeline itself."""
    if index == len(SIBLINGS[case.name]):
        pytest.skip("diffusers has one such pipeline of this family")
    mix, own = Mix({"a": case.run}), {"num_inference_steps": 4, "strength": 0.8, "guidance_scale": 3.0}
    pipe, given = sibling(case, SIBLINGS[case.name][index])
    make = partial(pipe, **given, output_type="pt")
    ours = make(**mix.inputs(pipe, TEXTS, **own), generator=generators()).images
    model = case.model()
    mix.schedule(model)
    for part, encoder in model.encoders("a").items():
        setattr(pipe, part, encoder)
    assert_same(torch.as_tensor(ours), torch.as_tensor(make(prompt=TEXTS, **own, generator=generators()).images))


@pytest.mark.parametrize("index", [0, 1])
def test_switching_in_image_to_image_and_inpainting(case, index):
    """Below the switch from the first step on it is the tuned encoder alone; what cannot be switched is refused."""
    if index == len(SIBLINGS[case.name]):
        pytest.skip("diffusers has one such pipeline of this family")
    name, own = SIBLINGS[case.name][index], {"num_inference_steps": 4, "guidance_scale": 3.0}
    pipe, given = sibling(case, name)
    mix, everywhere = Mix({"a": case.late}), Mix({"a": case.late}, timestep=1001)
    if name.startswith(("StableDiffusion3", "FluxI")):
        with pytest.raises(UsageError, match=rf"{name} cannot change pooled_prompt_embeds between steps"):
            mix.inputs(pipe, TEXTS, **own, strength=0.9, height=64, width=64)
        return
    size = {key: given.pop(key) for key in ("height", "width") if key in given}

    def make(mix, strength):
        chosen = mix.inputs(pipe, TEXTS, **own, strength=strength, **size)
        return torch.as_tensor(pipe(**given, **chosen, output_type="pt", generator=generators()).images)

    assert_same(make(mix, 0.3), make(everywhere, 0.3))
    assert (make(mix, 1.0) - make(everywhere, 1.0)).abs().max() > 1e-3


def test_a_short_training_run(case, configure, tmp_path):
    """The family's own configuration on its small folder: every text encoder at once, then a picture."""
    (tmp_path / "prompts.txt").write_text("\n".join(f"a {color} circle" for color in ("red", "blue", "green", "pink")))
    weights = f"{TOYBOX}/weights"
    parts = {f"tune.{part}": "{lr: auto, lora: {rank: 2, alpha: 2.0}}" for part in FAMILIES[case.name]}
    config = configure(
        "train",
        f"model={case.name}",
        *(override for override in QUICK if not override.startswith("training.ema")),
        f"model.path={case.base}",
        f"prompts.path={tmp_path / 'prompts.txt'}",
        "rewards=aesthetic",
        f"model.scorers.aesthetic={{clip: '{weights}/aesthetic_clip', head: '{weights}/aesthetic.safetensors'}}",
        "sampling.height=64",
        "sampling.width=64",
        *(f"{key}={value}" for key, value in parts.items()),
        "tracker=null",
        f"run_dir={tmp_path / 'run'}",
    )
    assert math.isfinite(run(config, tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["grad_norm"] > 0 for line in lines)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["parts"] == dict.fromkeys(FAMILIES[case.name], "lora")
    assert record["base"]["path"] == str(case.base)


def exported(case, configure, folder, run_folder, *overrides):
    export.run(
        configure(
            "export",
            f"model={case.name}",
            f"model.path={case.base}",
            f"tuned.a={run_folder}",
            *overrides,
            f"run_dir={folder}",
        ),
        folder,
    )
    return folder


def test_exported_encoders_make_our_pictures_in_stock_pipelines(case, configure, tmp_path, monkeypatch):
    """As a whole pipeline, by the lines of the model card, and each encoder's file under its published names."""
    model, mix = case.model(), Mix({"a": case.run})
    layout = model.family.single_file_names(model.pipeline)  # none of FLUX at this width
    formats = ["diffusers", "webui", "pipeline", *(["checkpoint"] if layout else [])]
    folder = exported(case, configure, tmp_path / "x", case.run, f"formats=[{','.join(formats)}]")
    ours = generate(model, JOBS, mix.schedule(model), case.sampling)
    stored = load_file(folder / "checkpoint.safetensors") if layout else {}
    for part in FAMILIES[case.name] if layout else ():
        tuned = model.encoders("a")[part]
        torch.testing.assert_close(layout[part].read_back(stored, tuned), own_names(plain_state(tuned)))
    whole = diffusers.DiffusionPipeline.from_pretrained(folder / "pipeline", **model.family.load_options)
    whole.set_progress_bar_config(disable=True)
    whole.scheduler = case.pipeline().scheduler
    assert_same(ours, stock(whole, prompt=TEXTS))
    carded = case.pipeline()
    card = (folder / "README.md").read_text()
    loading = re.search(r"from_pretrained\(.*?\)\n(.*?)```", card, re.DOTALL)[1]  # type: ignore[index]
    monkeypatch.chdir(folder)
    exec(loading, {"pipe": carded})  # our own card
    assert_same(ours, stock(carded, prompt=TEXTS))
    for part, encoder in model.encoders("a").items():
        state = load_file(folder / f"{part}.safetensors")
        assert not [key for key in state if "lora" in key]
        assert len(state) == len(plain_state(encoder))
    again = Mix({"b": folder})
    fresh = case.model()
    if not (folder / "text_encoder_lora").exists():
        assert_same(ours, generate(fresh, JOBS, again.schedule(fresh), case.sampling))


KOHYA = {
    "sdxl": [
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_2_self_attn_v_proj",
    ],
    "sd35_medium": [
        "lora_te1_text_model_encoder_layers_0_self_attn_k_proj",
        "lora_te3_encoder_block_1_layer_0_SelfAttention_q",
    ],
    "flux1_dev": [
        "lora_te1_text_model_encoder_layers_2_self_attn_out_proj",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_o",
    ],
    "sd15": ["lora_te_text_model_encoder_layers_0_self_attn_q_proj"],
}


def test_adapters_under_kohyas_names(case, configure, tmp_path):
    """The names that kohya and ComfyUI read, with each layer's alpha; a family without such names says so."""
    lora = {"rank": 2, "alpha": 4.0, "target_modules": "auto", "layers": None}
    run_folder = case.make_run("adapters", dict.fromkeys(FAMILIES[case.name], lora))
    if case.name not in KOHYA:
        with pytest.raises(UsageError, match=r"formats=\[kohya\]: there are no names for the adapters"):
            exported(case, configure, tmp_path / "x", run_folder, "formats=[kohya]")
        return
    file = exported(case, configure, tmp_path / "x", run_folder, "formats=[kohya]") / "lora.safetensors"
    state, model = load_file(file), case.model()
    layers = {key.partition(".")[0] for key in state}
    assert set(KOHYA[case.name]) <= layers
    assert len(state) == 3 * len(layers)
    assert {float(value) for key, value in state.items() if key.endswith(".alpha")} == {4.0}
    assert {key.split("_")[1] for key in state} == {name.split("_")[1] for name in layers}
    count = sum(
        len(read_lora(path, path.parent.name.removesuffix("_lora"), model)[0]) // 2
        for path in run_folder.rglob("*.safetensors")
    )
    assert len(layers) == count


def test_a_stock_pipeline_loads_what_its_loader_takes(case):
    """LoRA folders of CLIPs and of the denoiser, every key of them."""
    model, pipe = case.model(), case.pipeline()
    mix = Mix({"d": case.denoiser})
    mix.load_denoiser(model)
    ours = generate(model, JOBS, ConditioningSchedule.original(), case.sampling)
    pipe.load_lora_weights(case.denoiser / f"{model.family.denoiser}_lora")
    assert_same(ours, stock(pipe, prompt=TEXTS))
    untuned = generate(case.model(), JOBS, ConditioningSchedule.original(), case.sampling)
    assert (ours - untuned).abs().max() > 1e-2


WIDE = {  # layers that the families' own choice of adapters leaves out
    "text_encoder": ["fc1"],
    "text_encoder_2": ["q_proj", "fc2", "text_projection"],
    "denoiser": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "conv1", "linear_1"],
}


def test_a_stock_pipeline_loads_every_tensor_of_adapters_on_any_layers(case):
    """Each part's folder into a fresh stock pipeline: as many tensors as learned, none as they begin."""
    made = []
    for part, targets in WIDE.items():
        lora = {"rank": 2, "alpha": 4.0, "target_modules": targets, "layers": None}
        if case.kind_of(part) not in ("clip_text_model", "denoiser"):
            continue  # peft's layout
        component = case.model().component(part)
        folder = case.make_run(f"wide_{part}", {part: lora}) / f"{component}_lora"
        pipe, (file,) = case.pipeline(), folder.glob("*.safetensors")
        pipe.load_lora_weights(folder)
        loaded = {name: one for name, one in getattr(pipe, component).named_parameters() if "lora_" in name}
        assert len(loaded) == len(load_file(file)) > 0
        assert all(one.abs().max() > 0 for one in loaded.values())
        made.append(part)
    assert made, "no part has such adapters: this proves nothing"


def test_an_old_folder_without_steps_offset_gets_the_stock_pipelines_timesteps(tmp_path):
    """diffusers corrects it when the folder is loaded; another sampler made from its settings keeps the correction."""
    from random_models import make_pipeline

    make_pipeline("sd15", tiny=True).save_pretrained(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text())
    del settings["steps_offset"]
    file.write_text(json.dumps(settings))
    with pytest.warns(FutureWarning, match="steps_offset"):
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    model = Model(copy.copy(pipe))
    for name in ("ddim", "euler"):
        ours = model.sampler(name, 7, (64, 64)).timesteps
        kind = type(model.sampler(name, 7, (64, 64)).scheduler)
        stock_scheduler = kind.from_config({**settings, "steps_offset": 1, "clip_sample": False})
        stock_scheduler.set_timesteps(7)
        torch.testing.assert_close(ours.float(), stock_scheduler.timesteps.float())
    shutil.rmtree(tmp_path)
