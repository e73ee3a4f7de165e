"""Mixed, switched and merged encoders: our chain against the stock pipelines, whole encoders against adapters."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from random_models import make_pipeline
from safetensors.torch import load_file, save_file

from tests.conftest import PROMPTS, WEIGHTS, load
from textcraftor.errors import UsageError
from textcraftor.inference.generate import generate
from textcraftor.inference.mix import Mix, read_schedule
from textcraftor.models.base import Branch
from textcraftor.models.model import Model
from textcraftor.models.run_record import Base, RunRecord, parts_in
from textcraftor.models.saving import plain_encoder
from textcraftor.models.tuning import add_learners

BASE = WEIGHTS / "pipeline"
JOBS = [(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
LORA = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj", "fc1"]}


def make_run(folder: Path, seed: int, tune: dict, schedule: dict | None = None, base: Path = BASE) -> Path:
    """The folder of a run whose learners moved at random, far enough to be seen in the pictures."""
    model = load(base)
    learners = add_learners(model, {part: {"span": [0, 1], "lr": 1e-4, "lora": lora} for part, lora in tune.items()})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for learner in learners:
            for parameter in learner.parameters:
                parameter += (0.1 if learner.lora else 0.02) * torch.randn(parameter.shape, generator=generator)
    folder.mkdir(parents=True)
    for learner in learners:
        learner.save(folder)
    weights = {"tuned" if "text_encoder" in tune else "original": 1.0}
    schedule = schedule or {"switch_timestep": 999, "late": weights, "early": weights}
    RunRecord(type(model.pipeline).__name__, Base.of({"path": str(base)}), parts_in(folder), schedule).write(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    late = {"switch_timestep": 400, "late": {"tuned": 1.0}, "early": {"original": 1.0}}
    return {
        "a": make_run(folder / "a", 1, {"text_encoder": None}),
        "b": make_run(folder / "b", 2, {"text_encoder": LORA}),
        "late": make_run(folder / "late", 3, {"text_encoder": None}, late),
        "unet": make_run(folder / "unet", 4, {"denoiser": None}),
        "unet_lora": make_run(folder / "unet_lora", 5, {"denoiser": {**LORA, "target_modules": ["to_q", "to_v"]}}),
    }


def of(runs: dict[str, Path], *names: str, **options) -> Mix:
    return Mix({name: runs[name] for name in names}, **options)


def pictures(mix: Mix, model: Model, sampling) -> torch.Tensor:
    mix.load_denoiser(model)
    schedule = mix.schedule(model, lambda steps: sampling.with_steps(steps).timesteps(model))
    return generate(model, JOBS, schedule, sampling)


def pipeline(kind=StableDiffusionPipeline, scheduler=DDIMScheduler, base: Path = BASE, **parts):
    pipe = kind.from_pretrained(base, safety_checker=None, requires_safety_checker=False, **parts)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, clip_sample=False, skip_prk_steps=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for _, seed in JOBS]


def embeds(model: Model, name: str) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(PROMPTS, [""] * len(PROMPTS), name).prompt.mixed["encoder_hidden_states"]


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "dpmsolver++"])
@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("a", "b"), {"weights": {"a": 0.6, "b": 0.7}}),
        (("a", "b"), {"weights": {"a": 1.5, "b": "rest"}, "last": (2, 5)}),
        (("a", "b"), {"weights": {"a": 0.5}, "merge": True, "timestep": 500}),
        (("late",), {}),
    ],
)
def test_an_unmodified_pipeline_makes_our_chains_pictures(runs, model, sampling, names, options, scheduler):
    mix, sampling = of(runs, *names, **options), replace(sampling, scheduler=scheduler)
    kind = {"ddim": DDIMScheduler, "pndm": PNDMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}[scheduler]
    arguments = mix.inputs(pipeline_ := pipeline(scheduler=kind), PROMPTS, num_inference_steps=sampling.steps)
    theirs = pipeline_(
        **arguments, guidance_scale=3.0, height=64, width=64, generator=generators(), output_type="pt"
    ).images
    torch.testing.assert_close(pictures(mix, model, sampling), theirs, rtol=0, atol=1e-4)


def look_up(part, at) -> None:
    """Let a network take its conditioning from a schedule by timestep, whatever the pipeline gives it."""
    forward = part.forward

    def substituted(sample, t, encoder_hidden_states, **options):
        conditioning = at(t)
        return forward(sample, t, **Branch.cat([conditioning.negative, conditioning.prompt]).mixed, **options)

    part.forward = substituted


@pytest.fixture(scope="module")
def sd15(tmp_path_factory) -> tuple[Path, Path]:
    """A small random pipeline laid out as SD 1.5, for pipelines that take no other latents, and a run on it."""
    folder = tmp_path_factory.mktemp("sd15")
    make_pipeline("sd15", tiny=True).save_pretrained(folder / "base")
    return folder / "base", make_run(folder / "run", 6, {"text_encoder": None}, base=folder / "base")


def control_net(base: Path) -> ControlNetModel:
    """One with random weights, that changes the pictures."""
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(pipeline(base=base).unet)
    for block in net.controlnet_down_blocks:
        torch.nn.init.normal_(block.weight, std=0.02)
    return net


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize(
    "kind", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionControlNetPipeline]
)
def test_the_pipelines_siblings_keep_the_noise_level_of_the_switch(sd15, kind, strength):
    """The same pipeline with networks that look up their conditioning by timestep makes the same pictures."""
    base, run = sd15
    picture = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64).expand(3, -1, -1, -1)
    given = {"image": picture, "guidance_scale": 3.0, "output_type": "pt", "num_images_per_prompt": 1}
    own, parts = {"num_inference_steps": 10, "strength": strength}, {}
    if kind is StableDiffusionInpaintPipeline:
        mask = torch.zeros(3, 1, 64, 64)
        mask[..., 32:] = 1
        given |= {"mask_image": mask, "height": 64, "width": 64}
    if kind is StableDiffusionControlNetPipeline:
        parts = {"controlnet": control_net(base)}
        del own["strength"]
        own["num_inference_steps"] = int(10 * strength)
    mix, pipe, model = Mix({"a": run}, last=(5, 10)), pipeline(kind, base=base, **parts), load(base)
    ours = pipe(**given, **mix.inputs(pipe, PROMPTS, **own), generator=generators()).images

    schedule = mix.schedule(model, lambda steps: model.sampler("ddim", steps, (64, 64)).timesteps)
    encoded, looked_up = {name: model.encode(PROMPTS, [""] * 3, name) for name in schedule.encoders}, []

    def at(t):
        looked_up.append(schedule.weights(t))
        return schedule.at(encoded, t)

    for part in [pipe.unet, *parts.values()]:
        look_up(part, at)
    theirs = pipe(PROMPTS, **given, **own, generator=generators()).images
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert {"a": 1.0} in looked_up
    if kind is not StableDiffusionControlNetPipeline:
        assert ({"original": 1.0} in looked_up) == (strength == 1.0), "at low strength it begins below the switch"


def test_several_pictures_a_prompt_and_a_callback_of_ones_own(runs):
    """Two pictures a prompt from one call are those of two calls; the user's callback still sees the latents."""
    mix, pipe, seen = of(runs, "a", last=(2, 4)), pipeline(), []

    def look(pipe, step, t, tensors):
        seen.append(sorted(tensors))
        return tensors

    def make(prompts, seeds, **options):
        arguments = mix.inputs(pipe, prompts, "", num_inference_steps=4, callback_on_step_end=look, **options)
        drawn = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(**arguments, guidance_scale=3.0, height=64, width=64, generator=drawn, output_type="pt").images

    both = make(PROMPTS[:2], [0, 1, 2, 3], num_images_per_prompt=2)
    apart = torch.cat([make(PROMPTS[i // 2], [i]) for i in range(4)])
    torch.testing.assert_close(both, apart, rtol=0, atol=1e-4)
    assert seen == [["latents", "prompt_embeds"]] * 20


def test_weights_mean_a_sum_of_embeddings_or_of_weights(runs, model):
    mix = of(runs, "a", "b", weights={"a": 1.5, "b": -0.25})
    assert mix.all_weights == {"a": 1.5, "b": -0.25, "original": -0.25}
    schedule = mix.schedule(model)
    parts = {name: embeds(model, name) for name in ("original", "a", "b")}
    with torch.no_grad():
        encoded = {name: model.encode(PROMPTS, [""] * 3, name) for name in schedule.encoders}
    mixed = 1.5 * parts["a"] - 0.25 * parts["b"] - 0.25 * parts["original"]
    found = schedule.at(encoded, 500).prompt.mixed["encoder_hidden_states"]
    torch.testing.assert_close(found, mixed, rtol=0, atol=1e-5)

    merged = of(runs, "a", "b", weights={"a": 0.5, "b": "rest"}, merge=True)
    (name,) = merged.schedule(model).encoders
    lora = load_file(runs["b"] / "text_encoder_lora" / "pytorch_lora_weights.safetensors")
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    down, up = (lora[f"text_encoder.{layer}.{end}.weight"] for end in ("lora_A", "lora_B"))
    base = model.encoders()["text_encoder"].state_dict()
    key = next(key for key in base if key.endswith(f"{layer.removeprefix('text_model.')}.weight"))
    full = load_file(runs["a"] / "text_encoder" / "model.safetensors")[f"{layer}.weight"]
    expected = 0.5 * full + 0.5 * (base[key] + LORA["alpha"] / LORA["rank"] * up @ down)
    found = model.encoders(name)["text_encoder"].state_dict()[key]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_merging_one_encoder_alone_is_that_encoder(runs, model):
    """Also of adapters: merged into the weights they give the same embeddings."""
    merged = of(runs, "b", weights={"b": 1 - 1e-6}, merge=True)
    (name,) = merged.schedule(model).encoders
    torch.testing.assert_close(embeds(model, name), embeds(model, "b"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["unet", "unet_lora"])
def test_a_unet_stands_beside_any_mix_of_encoders(runs, model, sampling, name):
    """From a run named among the tuned ones or by its path; the encoders stay as they are."""
    mixed = {"weights": {"a": 0.5}}
    found = pictures(Mix({"a": runs["a"], name: runs[name]}, **mixed), model, sampling)
    again, fresh = load(), load()
    by_path = pictures(of(runs, "a", denoiser=runs[name] / name, **mixed), again, sampling)
    torch.testing.assert_close(found, by_path, rtol=0, atol=0)
    without = pictures(Mix({"a": runs["a"], name: runs[name]}, denoiser="original", **mixed), fresh, sampling)
    assert (found - without).abs().max() > 0.05
    if name == "unet_lora":
        nothing = pictures(of(runs, "a", denoiser=runs[name], denoiser_strength=0.0, **mixed), fresh, sampling)
        torch.testing.assert_close(nothing, without, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (("a", "b"), {}, r"tuned names 2 text encoders: say how much of each, as mix.a=0.5 mix.b=0.5"),
        (("a",), {"weights": {"c": 1.0}}, r"mix.c=1.0 must name one of original, a"),
        (
            ("unet",),
            {"weights": {"unet": 1.0}},
            r"mix.unet=1.0 must name one of original; .*unet tuned no text encoder",
        ),
        (("a",), {"weights": {"a": float("nan")}}, r"mix.a=nan must be a finite number"),
        (("a",), {"weights": {"a": "half"}}, r"mix.a=half must be a finite number, or rest"),
        (("a",), {"weights": {"a": "rest", "original": "rest"}}, r"a and original: one alone can take the rest"),
        (("a",), {"weights": {"a": 0.0, "original": 0.0}}, r"every weight of the mix is 0"),
        (("a",), {"last": (6, 5)}, r"switch.last=6 must lie between 1 and sampling.steps=5"),
        (("a",), {"last": (1, 5), "timestep": 3}, r"switch.last and switch.timestep mean the same"),
        (
            ("a", "late"),
            {"weights": {"a": 0.5, "late": 0.5}},
            r"a everywhere, late up to timestep 400.*give switch.last",
        ),
        (("unet", "unet_lora"), {}, r"unet and unet_lora each tuned a denoiser: choose one with denoiser.path"),
        (("a",), {"denoiser": "nowhere"}, r"denoiser.path=nowhere does not exist"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_model_loads(runs, names, options, said):
    with pytest.raises(UsageError, match=said):
        of(runs, *names, **options)


CHANGED_RECORDS = {
    "a schedule of text": lambda record: record | {"conditioning": {"switch_timestep": "x"}},
    "a record that is a list": lambda record: [record],
    "a record of another format": lambda record: record | {"format": 3},
    "a record with a base of text": lambda record: record | {"base": "here"},
    "a record without parts": lambda record: {key: value for key, value in record.items() if key != "parts"},
}
OLD_SCHEDULES = {"an old schedule of text": '{"switch_timestep": "x"}', "an old schedule that is a list": "[]"}


def strangers(kind: str, run: Path, folder: Path) -> Path:
    """A copy of a run in which something is not as it should be."""
    shutil.copytree(run, folder)
    file = next(folder.rglob("*.safetensors"))
    state = load_file(file)
    key = next(key for key in state if "q_proj" in key)
    if kind == "a tensor of another shape":
        state[key] = torch.zeros(1 << 12, 3)
    elif kind == "a tensor that is missing":
        del state[key]
    save_file(state, file)
    if kind == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    elif kind == "a pickle":
        file.unlink()
        torch.save(state, folder / "text_encoder" / "pytorch_model.bin")
    elif kind == "another number of layers":
        config = folder / "text_encoder" / "config.json"
        config.write_text(config.read_text().replace('"num_hidden_layers": ', '"num_hidden_layers": 9999'))
    elif kind in CHANGED_RECORDS:
        (folder / "run.json").write_text(
            json.dumps(CHANGED_RECORDS[kind](json.loads((folder / "run.json").read_text())))
        )
    elif kind in OLD_SCHEDULES:
        (folder / "run.json").unlink()
        (folder / "conditioning.json").write_text(OLD_SCHEDULES[kind])
    return folder


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("a tensor of another shape", r"q_proj.[a-z]+ has the shape \(4096, 3\) but the model's own"),
        ("a tensor that is missing", r"key .*q_proj.* is missing"),
        ("cut short", r"model.safetensors is no whole safetensors file .*: copy it again"),
        ("a pickle", r"holds no model.safetensors"),
        ("a schedule of text", r"run.json: conditioning.*must .*as runs write it"),
        ("a record that is a list", r"run.json holds a list, not an object with keys"),
        ("a record of another format", r"run.json: format=3 must be 2"),
        ("a record with a base of text", r"run.json: base must be an object with keys, as runs write it"),
        ("a record without parts", r"run.json must have parts, as runs write it"),
        ("an old schedule of text", r"conditioning.json.* must .*as runs write it"),
        ("an old schedule that is a list", r"conditioning.json holds a list, not an object with keys"),
    ],
)
def test_what_comes_from_a_stranger_is_checked_before_it_is_used(runs, model, tmp_path, kind, said):
    with pytest.raises(UsageError, match=said):
        Mix({"x": strangers(kind, runs["a"], tmp_path / "x")}).schedule(model)


def test_a_link_out_of_the_folder_is_refused(runs, tmp_path):
    """Else an export would copy, and perhaps upload, what a stranger's link points to. The hub's cache links to its
    own blobs."""
    folder = shutil.copytree(runs["a"], tmp_path / "x")
    (tmp_path / "secret").write_text("{}")
    (folder / "text_encoder" / "notes.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match=r"notes.json leads out of .*x, to .*secret: take the link away"):
        Mix({"x": folder})
    cache = tmp_path / "models--me--mine"
    cached = shutil.copytree(runs["a"], cache / "snapshots" / "1234")
    (cache / "blobs").mkdir()
    file = cached / "text_encoder" / "model.safetensors"
    file.rename(cache / "blobs" / "abcd")
    file.symlink_to("../../../blobs/abcd")
    Mix({"x": cached})


def test_a_strangers_configuration_builds_nothing(runs, model, tmp_path):
    """A config.json that asks for thousands of layers: not read, the encoder is the base's with the file's tensors."""
    folder = strangers("another number of layers", runs["a"], tmp_path / "x")
    Mix({"x": folder, "a": runs["a"]}, weights={"x": 1.0}).schedule(model)
    assert torch.equal(embeds(model, "x"), embeds(model, "a"))


def test_adapters_of_a_stranger_do_not_choose_their_size(runs, model, tmp_path):
    """Ranks come from the tensors, so metadata that asks for a huge one allocates nothing; misfits are refused."""
    folder = shutil.copytree(runs["b"], tmp_path / "x")
    file = folder / "text_encoder_lora" / "pytorch_lora_weights.safetensors"
    state = load_file(file)
    save_file(
        state,
        file,
        metadata={"lora_adapter_metadata": json.dumps({"text_encoder.r": 1 << 30, "text_encoder.lora_alpha": 8})},
    )
    Mix({"x": folder, "b": runs["b"]}, weights={"x": 1.0}).schedule(model)
    torch.testing.assert_close(embeds(model, "x"), embeds(model, "b"), rtol=0, atol=1e-6)
    save_file({key: torch.cat([value, value]) for key, value in state.items()}, file)
    with pytest.raises(UsageError, match="do not fit this model"):
        Mix({"y": folder}).schedule(model)


def test_a_run_is_read_as_it_was_written(runs, tmp_path):
    """Also as those of before wrote it, by whom the schedule alone was said, in a file of its own."""
    run, written = runs["late"], json.loads((runs["late"] / "run.json").read_text())
    assert read_schedule(run).to_dict() == written["conditioning"]
    record = RunRecord.read(run)
    assert (record.family, record.base) == ("StableDiffusionPipeline", Base.of({"path": str(BASE)}))
    assert record.parts == {"text_encoder": "whole"}
    assert RunRecord.read(runs["unet_lora"]).parts == {"unet": "lora"}
    old = shutil.copytree(run, tmp_path / "old")
    (old / "run.json").unlink()
    with pytest.raises(UsageError, match=r"tuned.x=.*old holds no run.json"):
        Mix({"x": old})
    (old / "conditioning.json").write_text(json.dumps(written["conditioning"]))
    assert read_schedule(old) == read_schedule(run)
    assert RunRecord.read(old).parts == record.parts
    model = load()
    assert Mix({"x": old}).schedule(model).switch_timestep == 400
    Mix({"y": run}).schedule(model)
    assert torch.equal(embeds(model, "x"), embeds(model, "y"))


def test_one_plain_encoder_has_the_mix_in_its_weights(runs):
    """The weighted sum of all encoders' weights, adapters merged; the pipeline stays as it was, and its class reads."""
    pipe, mix = pipeline(), of(runs, "a", "b", weights={"a": 0.5, "b": 0.2})
    before = {name: value.clone() for name, value in pipe.text_encoder.state_dict().items()}
    encoder = mix.encoder(pipe)
    model = load()
    of(runs, "a", "b", weights={"a": 1.0}).schedule(model)
    parts = {name: plain_encoder(model, name, "text_encoder").state_dict() for name in ("original", "a", "b")}
    for name, value in encoder.state_dict().items():
        wanted = 0.3 * parts["original"][name] + 0.5 * parts["a"][name] + 0.2 * parts["b"][name]
        torch.testing.assert_close(value, wanted.to(value.dtype), rtol=1e-5, atol=1e-6)
    assert type(encoder) is type(pipe.text_encoder)
    assert all(torch.equal(value, before[name]) for name, value in pipe.text_encoder.state_dict().items())
    prompts = {"num_inference_steps": 2, "guidance_scale": 1.0, "height": 64, "width": 64, "output_type": "pt"}
    merged = pipe(**replace(mix, merge=True).inputs(pipe, PROMPTS, **prompts), generator=generators()).images
    pipe.text_encoder = encoder
    torch.testing.assert_close(pipe(PROMPTS, **prompts, generator=generators()).images, merged, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "options", "part", "line"),
    [
        (("late",), {}, "text_encoder", "the mix 1 late holds in some steps and the original encoder in the others"),
        (("a",), {"last": (2, 5)}, "text_encoder", "which is no single encoder: use"),
        (("a",), {"weights": {"a": 0.5, "original": 0.2}}, "text_encoder", "let its weights add up to 1"),
        (("a",), {}, "text_encoder_2", "this model has no such text encoder; it has text_encoder"),
    ],
)
def test_a_mix_that_is_no_single_encoder_is_refused_by_name(runs, names, options, part, line):
    with pytest.raises(UsageError, match=line):
        of(runs, *names, **options).encoder(pipeline(), part)
