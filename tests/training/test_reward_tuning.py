"""The method: only the encoder learns, one seed gives one result, and the run folder holds what it should."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from tests.conftest import QUICK
from tests.conftest import load as load_base
from textcraftor.cli import config_dir
from textcraftor.data.prompts import PromptDraw, split_held_out
from textcraftor.errors import UsageError
from textcraftor.inference.generate import generate
from textcraftor.models.loading import load_model
from textcraftor.models.published_names import PREFIX, published
from textcraftor.models.run_record import RunRecord
from textcraftor.rewards.ocr import quoted
from textcraftor.training import loop, reward_tuning
from textcraftor.training.checks import check, split_prompts
from textcraftor.training.interrupt import Interrupt
from textcraftor.training.loop import tune as tune_on
from textcraftor.training.phases import Phases
from textcraftor.training.run import before_training
from textcraftor.training.train import load, run

KEPT = {
    "config.yaml",
    "summary.json",
    "metrics.jsonl",
    "report.html",
    "before_after.png",
    "run.json",
    "before_evaluated.npz",
    "before_watched.npz",
    "finished.json",
    "checkpoints",
    "samples",
    "text_encoder",
    "last",
    "tensorboard",
}


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "last" / "text_encoder" / "model.safetensors")


@pytest.fixture(scope="module")
def first(configure, tmp_path_factory):
    """The folder of a finished run; to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    run(configure("train", *QUICK, f"run_dir={folder}"), folder)
    return folder


def test_a_run_writes_its_folder_and_two_runs_with_one_seed_agree_exactly(first, go):
    second = go("b")
    assert {path.name for path in first.iterdir()} == KEPT
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (first, second)]
    assert summaries[0]["after"] == summaries[1]["after"]
    for key, value in weights(first).items():
        assert torch.equal(value, weights(second)[key]), key
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"loss", "grad_norm", "reward/aesthetic", "reward/hpsv2", "reward/clip"} <= set(lines[0])
    assert {"before", "after", "difference", "seconds", "peak_memory_gb"} <= set(summaries[0])
    html = (first / "report.html").read_text()
    assert html.count("data:image/png;base64") >= 9, "two prompts with two seeds, before and after, and a grid"
    assert "http" not in html.replace("http://www.w3.org", ""), "the report must be self-contained"
    with Image.open(first / "before_after.png") as sheet:
        assert sheet.size[0] > 256


SHORT = (
    "training.steps=1",
    "evaluation.prompts=2",
    "watch.prompts=1",
    "evaluation.seeds=[0]",
    "watch.seeds=[0]",
    "sampling.steps=2",
)


# They need weights that nothing in the toybox stands in for: their gradients are tested elsewhere.
UNPACKED = {"aesthetic_v25", "hpsv3", "mine", "mps", "siglip", "vqascore"}
PRESETS = {file.stem for file in (config_dir() / "rewards").glob("*.yaml")}


@pytest.mark.parametrize("preset", sorted(PRESETS - UNPACKED))
def test_every_mix_has_a_gradient(configure, tmp_path, preset):
    normalized = f"normalize_rewards={preset == 'preference'}".lower()
    job = load(configure("train", *QUICK, *SHORT, "prompts=words", f"rewards={preset}", normalized))
    before = before_training(job, tmp_path)["evaluated"].means()
    assert all(math.isfinite(value) for value in before.values())
    if preset == "preference":  # standardised by the untuned model's pictures
        assert before["total"] == pytest.approx(0, abs=1e-5)
    state = job.state()
    state.learn(0)
    job.objective.gradient(state, range(2), 2, Phases(job.model.device))
    norm = torch.cat([parameter.grad.flatten() for parameter in state.parameters]).norm()
    assert norm > 0
    assert norm.isfinite()


def test_only_the_tuned_encoder_changes_and_nothing_frozen_has_a_gradient(configure, monkeypatch, tmp_path):
    config = configure("train", *QUICK, f"run_dir={tmp_path}")
    models = []

    def remember(config, dtypes):
        models.append(load_model(config, dtypes))
        return models[-1]

    monkeypatch.setattr("textcraftor.inference.opening.load_model", remember)
    run(config, tmp_path)
    tuned, fresh = models[0], load_model(config)
    for name in ("denoiser", "vae"):
        part, before = getattr(tuned, name), getattr(fresh, name).state_dict()
        assert all(parameter.grad is None for parameter in part.parameters()), name
        assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items()), name
    original = fresh.encoders("original")["text_encoder"].state_dict()
    kept = tuned.encoders("original")["text_encoder"]
    assert all(parameter.grad is None for parameter in kept.parameters())
    assert all(torch.equal(value, original[key]) for key, value in kept.state_dict().items())
    changed = {key.removeprefix(PREFIX): value for key, value in weights(tmp_path).items()}
    assert any(not torch.equal(value, original[key.removeprefix(PREFIX)]) for key, value in changed.items())


class OneBatch(PromptDraw):
    """The same prompts and noise in every step."""

    def __call__(self, step, batch_size):
        return super().__call__(0, batch_size)


GRADIENTS = sorted(file.stem for file in (config_dir() / "gradient").glob("*.yaml"))
# The toybox has one text encoder; those with several are for other models.
OTHERS = ("text_encoder_2", "text_encoder_3")
TUNES = sorted(
    file.stem
    for file in (config_dir() / "tune").glob("*.yaml")
    if not any(OmegaConf.load(file).get(part) for part in OTHERS)
)


@pytest.mark.parametrize(
    ("gradient", "tune"),
    [
        # direct wants pictures, and ddpo's gradient, right on average alone, more than one batch
        *((gradient, "text_encoder") for gradient in GRADIENTS if gradient not in ("direct", "ddpo")),
        *(("last_k", tune) for tune in TUNES if tune != "text_encoder"),
    ],
)
def test_tuning_on_one_batch_raises_its_reward(configure, monkeypatch, gradient, tune):
    """The sign and the path of the gradient: ascending on fixed prompts and noise must raise the pictures' score."""
    monkeypatch.setattr("textcraftor.training.train.PromptDraw", OneBatch)
    rate = "1e-3" if "lora" in tune else "3e-5"
    chosen = (f"gradient={gradient}", f"tune={tune}", f"optim.lr={rate}", "training.warmup=0", "rewards=aesthetic")
    quick = [override for override in QUICK if gradient in ("last_k", "drtune") or "gradient.k" not in override]
    job = load(configure("train", *quick, "sampling.steps=4", "training.sampling.steps=4", "training.steps=5", *chosen))
    method = job.objective
    prompts, seeds = method.draw(0, 2)

    def score() -> float:
        images = generate(method.model, list(zip(prompts, seeds, strict=True)), method.schedule, method.sampling)
        return method.rewards(images, prompts)["aesthetic"].mean().item()

    before = score()
    pace = replace(job.pace, watch_every=99, checkpoint_every=99)
    tune_on(method, job.state(), pace, lambda *_: None, lambda _: [], lambda _: None, Interrupt())
    assert score() > before + 0.01


def test_the_policy_gradient_makes_what_scored_well_likelier(configure):
    """By hand: each path's log-density, weighted with how far its score lies above the mean before training."""
    job = load(configure("train", *QUICK, "gradient=ddpo", "rewards=aesthetic"))
    method, state = job.objective, job.state()
    method.rewards.start({"aesthetic": torch.tensor([5.0, 6.0])})
    state.learn(0.0)
    prompts, seeds = method.draw(0, 2)
    images, chain = method.pictures(prompts, seeds, 0, None, Phases(method.model.device))
    scores = method.rewards(images, prompts)["aesthetic"]
    ((scores.detach() - 5.5) * chain.log_prob).mean().backward()
    raising = torch.cat([parameter.grad.flatten() for parameter in state.parameters])
    state.learn(0.0)
    method.gradient(state, [0, 1], 2, Phases(method.model.device))
    descended = torch.cat([parameter.grad.flatten() for parameter in state.parameters])
    torch.testing.assert_close(-descended, raising, rtol=1e-3, atol=1e-5 * raising.abs().max().item())


def test_published_models_learn_from_whole_chains(configure):
    """As published, however many steps are asked for; what the toybox's short chains are, `experiment=` undoes."""
    assert configure("train", "model=sd15", "prompts=parti", "sampling.steps=40").training.sampling.steps == 40
    short, whole = configure("train"), configure("train", "experiment=toybox_scheme")
    assert short.training.sampling.steps < short.sampling.steps == whole.training.sampling.steps


def test_training_may_take_other_steps_than_evaluation(configure):
    """A shorter chain without guidance to learn from; what is looked at keeps the model's own settings."""
    job = load(configure("train", *QUICK, "training.sampling={steps: 2, guidance_scale: 1.0}"))
    assert (job.sampling.steps, job.objective.sampling.steps) == (3, 2)
    lines: list[dict] = []
    pace = replace(job.pace, steps=1)
    tune_on(job.objective, job.state(), pace, lambda _, line: lines.append(line), lambda _: None, print, Interrupt())
    assert lines[0]["denoiser_calls"] == 2


def rounded_redness(images, prompts):
    """A scorer outside torch: no gradient passes."""
    red, green, blue = images.detach().numpy().round(2).transpose(1, 0, 2, 3)
    return torch.from_numpy((red - (green + blue) / 2).mean((1, 2)))


def test_a_reward_that_cannot_be_differentiated_teaches_by_policy_gradient_alone(go):
    own = [
        "+rewards.red.weight=1",
        *(f"+rewards.red.reward.{part}" for part in ("_target_=" + __name__ + ".rounded_redness", "_partial_=true")),
    ]
    chosen = ("rewards=aesthetic", "rewards.aesthetic.weight=0", "training.steps=1", *own)
    with pytest.raises(UsageError, match=r"rewards.red passes no gradient to the pictures: gradient=ddpo"):
        go("last_k", *chosen)
    folder = go("ddpo", "gradient=ddpo", "gradient.k=2", *chosen)
    line = json.loads((folder / "metrics.jsonl").read_text())
    assert line["grad_norm"] > 0
    assert line["gradient_steps"] == 2
    assert line["denoiser_calls"] == 3


def test_a_batch_without_a_wanted_text_teaches_the_ocr_reward_nothing(go, tmp_path):
    """Every score is 0 and has no gradient; the run goes on."""
    (tmp_path / "prompts.txt").write_text("a red circle\na blue star\na pink cross\na green square\n")
    folder = go(
        "wordless",
        "rewards=ocr",
        f"prompts.path={tmp_path / 'prompts.txt'}",
        "prompts.held_out=null",
        "evaluation.prompts=1",
        "watch.prompts=1",
    )
    assert all(json.loads(line)["grad_norm"] == 0 for line in (folder / "metrics.jsonl").read_text().splitlines())


def test_frozen_parts_get_no_gradients_of_weights(configure, tmp_path):
    """Counts, over a step of each kind, the parameters that have a gradient: those that learn, no others."""
    for tune in ("text_encoder", "text_encoder_lora", "denoiser_lora"):
        job = load(configure("train", *QUICK, "rewards=aesthetic", f"tune={tune}"))
        state = job.state()
        state.learn(0)
        job.objective.gradient(state, range(2), 2, Phases(job.model.device))
        model = job.model
        encoders = [encoder for name in model.readers for encoder in model.encoders(name).values()]
        parts = [model.denoiser, model.vae, *encoders, job.rewards]
        with_gradient = {id(p) for part in parts for p in part.parameters() if p.grad is not None}
        assert with_gradient == {id(p) for p in state.parameters}, tune


def test_two_stages_train_one_part_and_then_the_other(go):
    folder = go(
        "stages",
        "tune=two_stages",
        "training.steps=4",
        "rewards=aesthetic",
        "training.checkpoint_every=2",
        "training.keep_checkpoints=9",
    )
    states = [
        torch.load(folder / "checkpoints" / f"step_{step:06d}" / "state.pt", weights_only=True)["learned"]
        for step in (2, 4)
    ]
    changed = {name.split(".")[0] for name, value in states[0].items() if not torch.equal(value, states[1][name])}
    assert changed == {"denoiser"}
    assert {"unet", "text_encoder"} <= {path.name for path in folder.iterdir()}


def test_the_second_stage_keeps_the_first_ones_encoder(go, configure):
    """`tuned.a=` conditions by that run's encoder, leaves it alone, and the folder holds all that pictures need."""
    first = go("first", "rewards=aesthetic")
    second = go("second", "rewards=aesthetic", "tune=denoiser_lora", f"tuned.a={first}")
    name = "text_encoder/model.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (second / "unet_lora").is_dir()
    assert RunRecord.read(first).conditioning == RunRecord.read(second).conditioning
    assert [one["run"] for one in RunRecord.read(second).parents] == [str(first)]
    ends, begins = (json.loads((folder / "summary.json").read_text()) for folder in (first, second))
    assert begins["before"]["total"] == pytest.approx(ends["after"]["total"], abs=1e-4)

    # A fresh model with what the folder holds makes the pictures that the run ended with.
    job = load(configure("train", *QUICK, "rewards=aesthetic", "tune=denoiser_lora", f"tuned.a={second}"))
    assert job.look(job.start, job.evaluated).means()["total"] == pytest.approx(begins["after"]["total"], abs=1e-4)


def test_a_target_is_a_hinge(go):
    """Past its target a reward teaches nothing: with all targets far below, the weights move by decay alone."""
    free = go("free", "rewards=aesthetic", "training.steps=1")
    capped = go("capped", "rewards=aesthetic", "training.steps=1", "+rewards.aesthetic.target=-100")
    lines = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[0]) for folder in (free, capped)]
    assert lines[0]["grad_norm"] > 0
    assert lines[1]["grad_norm"] == 0
    assert lines[1]["loss"] == 0


def test_a_moving_average_is_what_is_watched_and_saved(go):
    """The saved weights lie between the untuned and the last ones, and equal diffusers' average in the checkpoint."""
    folder = go("ema", "rewards=aesthetic", "training.ema_decay=0.9", "training.steps=3", "optim.lr=1e-3")
    state = torch.load(folder / "checkpoints" / "step_000003" / "state.pt", weights_only=True)
    names = [name.removeprefix("text_encoder.") for name in state["learned"]]
    saved, encoder = weights(folder), load_base().encoders()["text_encoder"]
    for name, average in zip(names, state["ema"]["shadow_params"], strict=True):
        torch.testing.assert_close(saved[published(name, encoder)], average, rtol=0, atol=0)
    assert any(not torch.equal(saved[published(n, encoder)], state["learned"][f"text_encoder.{n}"]) for n in names)


def test_half_precision_of_what_is_frozen_keeps_the_gradients_direction(configure):
    """The gradient of a step at the toybox's own sampling, bf16 frozen parts against all fp32: cosine at least .999."""
    flat = []
    for dtype in ("float32", "bfloat16"):
        job = load(configure("train", "experiment=toybox_scheme", f"dtype={dtype}", "device=cpu", "gradient.k=2"))
        assert job.model.denoiser.dtype == getattr(torch, dtype)
        state = job.state()
        state.learn(0)
        job.objective.gradient(state, range(2), 2, Phases(job.model.device))
        assert all(parameter.dtype == torch.float32 for parameter in state.parameters)
        flat.append(torch.cat([p.grad.flatten() for p in state.parameters if p.grad is not None]).double())
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) >= 0.999


def test_a_dry_run_forecasts_and_writes_nothing(configure, tmp_path):
    said = run(configure("train", *QUICK, "dry_run=true", f"run_dir={tmp_path / 'dry'}"), tmp_path / "dry")
    assert re.search(r"measured over two steps [\d.]+ GB .* about \d+ min; nothing was written", said)
    assert not list(tmp_path.iterdir())


def test_another_seed_trains_otherwise_and_is_evaluated_alike(first, go):
    other = go("other", "seed=5")
    before = [json.loads((folder / "summary.json").read_text())["before"] for folder in (first, other)]
    assert before[0] == before[1], "the evaluation depends on the training's seed"
    assert any(not torch.equal(value, weights(other)[key]) for key, value in weights(first).items())


def test_the_draw_of_prompts_is_a_function_of_seed_and_step():
    draw = PromptDraw(list("abcde"), seed=3)
    assert draw(4, 2) == PromptDraw(list("abcde"), seed=3)(4, 2)
    assert draw(4, 2)[1] != draw(5, 2)[1]
    one_pass = [prompt for step in range(5) for prompt in draw(step, 1)[0]]
    assert sorted(one_pass) == list("abcde"), "a pass shows every prompt once"


def test_training_and_held_out_prompts_never_overlap(configure, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"prompt {i % 20}" for i in range(60)))
    config = configure("train", f"prompts.path={file}", "prompts.held_out=null", "evaluation.prompts=6")
    train, held_out, watched = split_prompts(config)
    everything = [*train, *held_out, *watched]
    assert len(everything) == len(set(everything)) == 20
    assert held_out
    assert watched


@pytest.mark.parametrize(
    ("there", "asked", "given"),
    [
        (26, (2, 24), (2, 24)),
        (90, (2, 24), (2, 24)),
        (64, (48, 16), (48, 16)),
        (4, (1, 3), (1, 3)),
        (20, (2, 24), (2, 18)),
        (20, (48, 16), (10, 10)),
        (20, (48, 3), (17, 3)),
        (2, (48, 16), (1, 1)),
        (2, (1, 9), (1, 1)),
    ],
)
def test_as_many_prompts_are_evaluated_and_watched_as_are_asked_for(there, asked, given):
    """Where there are so many; else neither gets more than it asked for, and nothing is left over."""
    prompts = [f"prompt {number}" for number in range(there)]
    evaluated, watched = split_held_out(prompts, *asked)
    assert (len(evaluated), len(watched)) == given
    assert evaluated + watched == prompts[: sum(given)]


def test_a_third_of_the_watched_prompts_have_words_where_a_scorer_reads(configure):
    """The last ones without give way to the next spare ones with; what is evaluated stays, nothing is trained on."""
    plain, words = [f"a circle {number}" for number in range(40)], [f'a star "{number}"' for number in range(5)]
    evaluated, watched = split_held_out(plain[:20] + words[:1], 10, 9, plain[20:] + words[1:], quoted)
    assert (evaluated, watched) == (plain[:10], [*plain[10:16], *words[2::-1]])
    assert split_held_out(plain[:20], 10, 9, words[:1], quoted)[1] == [*plain[10:18], words[0]], "there are no more"
    drawn = {
        name: split_prompts(configure("train", f"rewards={name}", "watch.prompts=24", "evaluation.prompts=120"))
        for name in ("clip", "ocr")
    }
    assert drawn["clip"][1] == drawn["ocr"][1]
    assert sum(map(bool, map(quoted, drawn["ocr"][2]))) >= 8
    assert not {*drawn["ocr"][0]} & {*drawn["ocr"][1], *drawn["ocr"][2]}


@pytest.mark.parametrize(
    ("asked", "told"),
    [((2, 4), ""), ((2, 24), "too few prompts are held out: 2 of evaluation.prompts=2 and 4 of watch.prompts=24")],
)
def test_too_few_held_out_prompts_are_told_in_one_line(configure, tmp_path, capsys, asked, told):
    (tmp_path / "six.txt").write_text(
        "\n".join(f"a {color} circle" for color in ["red", "blue", "pink", "gray", "green", "teal"])
    )
    numbers = [f"evaluation.prompts={asked[0]}", f"watch.prompts={asked[1]}"]
    loaded = load(configure("train", *QUICK, *numbers, "rewards=aesthetic", f"prompts.held_out={tmp_path / 'six.txt'}"))
    assert (len(loaded.evaluated), len(loaded.watched)) == (2, 4)
    lines = [line for line in capsys.readouterr().err.splitlines() if "held out" in line]
    assert len(lines) == bool(told)
    assert told in "".join(lines)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gradient.k=16", r"gradient.k=16 .* training.sampling.steps=5"),
        ("training.steps=0", "training.steps=0 must be at least 1"),
        ("gradient=refl; gradient.jumps=5", "gradient.jumps=5 must lie between 1 and"),
        ("gradient=refl; conditioning.tuned_on=last_n; conditioning.n=2", "conditioning.n must be at least 3 here"),
        ("gradient=drtune; conditioning.tuned_on=last_n; conditioning.n=2", "conditioning.n must be at least 9 here"),
        ("conditioning={tuned_on: last_n, n: 20}", "conditioning.n=20"),
        ("gradient.k=5; training.sampling.steps=4", r"gradient.k=5 must lie between 1 and training.sampling.steps=4"),
        ("prompts.path=/nowhere.txt", "does not exist"),
        ("rewards.hpsv2.reward.checkpoint=/nowhere.pt", r"rewards.hpsv2.reward.checkpoint=/nowhere.pt does not exist"),
        ("+rewards.mine.weight=1", "rewards.mine.reward is needed"),
        ("scorer_dtype=int8", "scorer_dtype=int8 must be auto or one of"),
        (
            "rewards={aesthetic: {weight: 0}, hpsv2: {weight: 0}, clip: {weight: 0}, pickscore: {weight: 0}}",
            "every weight is 0",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_any_model_loads(configure, tmp_path, override, message):
    with pytest.raises(UsageError, match=message):
        check(configure("train", *override.split("; ")), tmp_path)


def test_one_evaluated_prompt_has_no_interval_in_summary_and_report(go):
    folder = go("one", "evaluation.prompts=1", "training.steps=1", "rewards=aesthetic", "tracker=null")
    change = json.loads((folder / "summary.json").read_text())["difference"]["aesthetic"]
    assert (change["low"], change["high"]) == (None, None)
    assert math.isfinite(change["mean"])
    html = (folder / "report.html").read_text()
    assert "<td>none</td>" in html
    assert "nan" not in re.sub(r"data:image[^\"]*", "", html)


def test_scores_that_are_all_the_same_cannot_be_normalised(go, tmp_path):
    """Of prompts that want no text every legibility is 0; with a millionth for its spread, nothing else counted."""
    (tmp_path / "words.txt").write_text('a red circle with the word "KKQ"\na blue star with the word "ABC"\n')
    (tmp_path / "plain.txt").write_text("a red circle\na blue star\na green square\n")
    prompts = (f"prompts.path={tmp_path / 'words.txt'}", f"prompts.held_out={tmp_path / 'plain.txt'}")
    with pytest.raises(
        UsageError, match=r"normalize_rewards=true .* rewards.ocr gives all of them 0: evaluate prompts"
    ):
        go("run", "rewards=legible", "normalize_rewards=true", *prompts)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_one_picture_cannot_normalise_rewards(configure, monkeypatch):
    """Refused before any model loads; two pictures of one prompt can."""
    monkeypatch.setattr("textcraftor.training.job.open_model", lambda *_: pytest.fail("a model loads"))
    config = configure("train", *QUICK, "normalize_rewards=true", "evaluation.prompts=1", "evaluation.seeds=[4]")
    with pytest.raises(UsageError, match=r"normalize_rewards=true .* raise evaluation.prompts"):
        load(config)
    monkeypatch.undo()
    config.evaluation.seeds = [4, 5]
    assert load(config).rewards.normalize


def test_the_method_fits_on_a_page():
    """A reader finds the method in functions of at most 70 lines, in a file of at most 200."""
    import inspect

    for function in (reward_tuning.RewardTuning.gradient, reward_tuning.RewardTuning.pictures, loop.tune):
        assert len(inspect.getsource(function).splitlines()) <= 70
    assert len(inspect.getsource(reward_tuning).splitlines()) <= 200
