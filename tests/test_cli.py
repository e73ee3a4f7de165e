"""The command: its surface, and one clear line with a non-zero exit for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.conftest import QUICK
from textcraftor.cli import COMMANDS, config_dir, main
from textcraftor.config.overrides import as_typed
from textcraftor.data.records import Records

TEXTCRAFTOR = Path(sys.executable).with_name("textcraftor")


def textcraftor(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    import os

    return subprocess.run(
        [TEXTCRAFTOR, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, env=os.environ | environment
    )


def test_help_lists_every_command(tmp_path):
    shown = textcraftor("--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in COMMANDS)


def test_the_commands_and_keys_that_scripts_rely_on_stay(configure):
    """Freezes the command line's surface."""
    assert set(COMMANDS) >= {"train", "generate", "score", "fetch", "compare", "evaluate", "export", "app"}
    assert set(COMMANDS) >= {"rate", "ratings", "train-reward"}
    assert {"models", "questions", "grades", "ask", "next", "seed", "port", "run_dir"} <= set(configure("rate"))
    assert {"claim", "seeds", "limit", "pictures", "lanes", "docs", "run_dir"} <= set(configure("claims"))
    assert {"files", "questions", "models", "samples", "run_dir"} <= set(configure("ratings"))
    assert {"ratings", "models", "question", "raters", "layout", "clip", "run_dir"} <= set(configure("train-reward"))
    train, generate = configure("train"), configure("generate", "prompt='a red circle'")
    assert {"run_dir", "name", "seed", "device", "dtype", "negative_prompt"} <= set(train)
    assert {"resume", "dry_run", "tuned", "stop_on"} <= set(train)
    assert {"steps", "batch_size", "checkpoint_every"} <= set(train.training)
    assert {"steps", "guidance_scale", "height", "width"} <= set(train.sampling) & set(generate.sampling)
    assert "k" in train.gradient
    assert "path" in train.prompts
    assert "path" in train.model
    assert all("weight" in part for part in train.rewards.values())
    assert {"prompt", "negative_prompt", "tuned", "seeds", "run_dir"} <= set(generate)
    assert {"rewards", "images", "prompts", "run_dir"} <= set(configure("score"))
    for other in ("evaluate", "export"):
        assert {"tuned", "mix", "switch", "denoiser"} <= set(generate) & set(configure(other))
    assert {"suite", "seeds", "base", "shard", "run_dir"} <= set(configure("evaluate"))
    assert {"judge", "understander", "answers"} <= set(configure("evaluate")) & set(configure("score"))
    assert set(configure("fetch")) == {*train, "suite", "judge", "understander"}


@pytest.mark.parametrize("group", [path.name for path in config_dir().iterdir() if path.is_dir()])
def test_every_configuration_composes(configure, group):
    for file in sorted((config_dir() / group).glob("*.yaml")):
        first = file.read_text().removeprefix("# @package _global_\n")
        assert first.startswith("# textcraftor "), f"{file} does not begin with the command that uses it"
        extra = ["prompts.path=prompts.txt"] if file.stem.startswith("sd") or group == "experiment" else []
        if group == "reward":
            config = configure("train", f"+reward@rewards.added={file.stem}", *extra)
            assert "_target_" in config.rewards.added.reward
        else:
            config = configure(first.split()[2], f"{group}={file.stem}", *extra)
        assert config.run_dir


def test_rewards_are_reweighted_and_added_from_the_command_line(configure):
    config = configure("train", "rewards=aesthetic", "+reward@rewards.second=hpsv2", "rewards.second.weight=50")
    assert set(config.rewards) == {"aesthetic", "second"}
    assert config.rewards.second.weight == 50


def test_prompts_are_taken_literally(configure):
    for prompt in ('a (red), "KKQ" {x: [1]} = it\'s', "back\\slash", "${now:%Y}", "a red circle, and"):
        (override,) = as_typed("generate", [f"prompt={prompt}"])
        assert configure("generate", override).prompt == prompt


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], "unknown command trian; did you mean train?"),
        (["train", "+learning_rate=1e-4"], "unknown key learning_rate: TextCraftor calls it optim.lr"),
        (["train", "-m", "learning_rate=1e-4,1e-5"], "unknown key learning_rate: TextCraftor calls it optim.lr"),
        (["train", "optim.lr=null"], "optim.lr=null must be auto or a number above 0"),
        (["train", "optim.betas=5"], "optim.betas=5 must be two numbers in [0, 1), as optim.betas=[0.9,0.999]"),
        (["train", "optim._target_=torch.optim.SGD"], "leave it out with ~optim.betas"),
        (["train", "resume=begun", "training.steps=abc"], "training.steps=abc must be a whole number, at least 1"),
        (["train", "trainig.steps=3"], "unknown key trainig.steps; did you mean training.steps?"),
        (["generate", "tuned.a=x", "rundir=y"], "unknown key rundir; did you mean run_dir?"),
        (["train", "rewards=hpsv9"], "Could not find 'rewards/hpsv9'"),
        (["train", "gradient.k=16"], "gradient.k=16 must lie between 1 and training.sampling.steps=5"),
        (["train", "dry_run=fales"], "dry_run=fales must be true or false"),
        (["train", "training.steps=2.5"], "training.steps=2.5 must be a whole number"),
        (["train", "optim.lr=fast"], "optim.lr=fast must be auto or a number above 0"),
        (["train", "model.path=/nowhere"], "model.path=/nowhere does not exist"),
        (["train", "prompts.path=missing.txt"], "prompts.path=missing.txt does not exist"),
        (["train", "prompts.path=empty.txt"], "prompts.path=empty.txt holds no prompt"),
        (["train", "prompts.path=strange.txt"], "tokenizer does not know elephant"),
        (["train", "run_dir=finished"], "run_dir=finished already holds a finished run"),
        (["train", "resume=finished"], "resume=finished holds no config.yaml"),
        (["train", "stop_on=[brightness]"], "stop_on=brightness names no alarm"),
        (["train", "tracker=wandb"], "tracker=wandb is not installed"),
        (["train", "tune.text_encoder=null"], "tune names nothing to learn"),
        (["train", "tune=both", "tune.denoiser.span=[0.6,1]", "tune.text_encoder.span=[0,0.5]"], "must cover [0, 1]"),
        (["train", "memory.budget=lots"], "memory.budget=lots must be auto or a number of GB"),
        (["train", "memory.budget=0.01"], "memory.budget=0.01 GB, but one prompt at a time needs"),
        (["train", "sampling.scheduler=ddpm"], "sampling.scheduler=ddpm must be one of ddim"),
        (["train", "training.sampling.steps=0", "gradient=refl"], "sampling.steps=0 must be at least 1"),
        (["train", "evaluation.seeds=[]"], "evaluation.seeds=[] must be a list of at least one seed, each named once"),
        (["train", "watch.prompts=0"], "watch.prompts=0 must be at least 1"),
        (["train", "training.lr_schedule=cosin"], "training.lr_schedule=cosin must be one of linear, cosine"),
        (["train", "training.lr_cycles=2"], "training.lr_schedule=constant_with_warmup has no cycles"),
        (["train", "training.lr_schedule=cosine", "training.lr_cycles=3"], "cosine has no cycles"),
        (["train", "training.lr_schedule=cosine_with_restarts", "training.lr_cycles=71"], "must be at most 70"),
        (["train", "training.lr_cycles=0"], "training.lr_cycles=0 must be at least 1"),
        (["train", "stop_on=held_out"], "stop_on=held_out must be a list, as stop_on=[held_out]"),
        (["train", "device=tpu"], "device=tpu must be auto, cpu, cuda"),
        (["train", "+rewards.clip.target=high"], "rewards.clip.target=high must be a number"),
        (["evaluate", "suite=toybox", "limit=0"], "limit=0 must be at least 1"),
        (["generate", "prompt=a red circle", "seeds=5"], "seeds=5 must be a list of whole numbers"),
        (["generate", "prompt=a red circle", "sampling.steps=2000"], "the model knows 1000 noise levels"),
        (["train", "tune=denoiser", "tuned.a=missing"], "tuned.a=missing holds no run.json"),
        (["train", "tune=text_encoder_lora", "tune.text_encoder.lora.target_modules=[qq]"], "linear layers end in fc1"),
        (["compare", "finished"], "give at least two folders"),
        (["compare", "finished", "missing"], "missing holds no summary.json"),
        (["train", "dtype=float8"], "dtype=float8 must be auto or one of"),
        (["train", "model=sd15"], "prompts.path is needed"),
        (["train", "+rewards.x.weight=1", "+rewards.x.reward._target_=gone.Scorer"], "gone.Scorer cannot be loaded"),
        (["rate"], "models is needed"),
        (
            ["rate", "models.a=finished", "models.b=x"],
            "models.a=finished holds neither metadata.jsonl nor rows.parquet",
        ),
        (["rate", "models.a=x", "models.a=y"], "models.a is given twice: give each name once"),
        (["ratings"], "files=[]: name what textcraftor rate wrote, as ratings/ratings.jsonl"),
        (["ratings", "empty.txt"], "empty.txt, line 1 cannot be read as JSON"),
        (["claims"], "claim=[]: name claims, as textcraftor claims dial"),
        (["claims", "dail"], "unknown claim dail; did you mean dial?"),
        (["claims", "dial", "limit=0"], "limit=0 must be at least 1"),
        (["claims", "dial", "docs=gone"], "docs=gone is no folder"),
        (["train-reward"], "ratings=[]: name what textcraftor rate wrote, as ratings/ratings.jsonl"),
        (["train-reward", "ratings=a (1).jsonl"], "a (1).jsonl cannot be read: No such file"),
        (["train-reward", "empty.txt", "layout=linear"], "layout=linear must be aesthetic or pickscore"),
        (["score"], "images is needed"),
        (["score", "images=finished"], "holds no picture"),
        (["generate"], "give either prompt='...' or prompts.path=FILE"),
        (["generate", "prompt=a red elephant"], "tokenizer does not know elephant"),
        (["generate", "prompt=a red circle", "tuned.a=missing"], "tuned.a=missing holds no run.json"),
    ],
)
def test_a_mistake_gives_one_line_and_leaves_nothing(configure, tmp_path, monkeypatch, capsys, arguments, line):
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "strange.txt").write_text("a red elephant\na blue star\na red circle\na green ring\n")
    (tmp_path / "begun").mkdir()
    OmegaConf.save(configure("train"), tmp_path / "begun" / "config.yaml", resolve=True)
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / "summary.json").write_text("{}")
    (tmp_path / "finished" / "finished.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["textcraftor", *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert line in said
    assert said.startswith("textcraftor: ")
    assert len(said.strip().splitlines()) == 1, said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistake_ends_the_real_command_with_two(tmp_path):
    done = textcraftor("train", "gradient.k=16", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "textcraftor: gradient.k=16 must lie between 1 and training.sampling.steps=5: lower it or use gradient=full\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Runs the command in this process, from a folder that is not the repository; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["textcraftor", *arguments])
        monkeypatch.setattr(sys, "path", [*sys.path])
        main()
        return capsys.readouterr().out

    return command


def test_train_then_generate_from_another_folder(tmp_path, here):
    """The whole way as a user goes it."""
    assert "wrote runs/first" in here("train", *QUICK, "name=first")
    prompt = 'a red circle with the word "KKQ"'
    here("generate", "tuned.a=runs/first", "seeds=[3,4]", "name=g", f"prompt={prompt}")
    folder = tmp_path / "generated" / "g"
    assert {path.name for path in folder.glob("*.png")} == {"0000_3.png", "0000_4.png", "contact_sheet.png"}
    made = Records.read(folder)
    assert [(record.key, record.caption) for record in made.records] == [(f"0000_{n}.png", prompt) for n in (3, 4)]
    assert made.picture(1).size == (64, 64)
    with Image.open(folder / "0000_3.png") as picture:
        assert picture.size == (64, 64)
        assert picture.text["prompt"] == prompt
        assert picture.text["seed"] == "3"


def test_a_scorer_in_a_users_own_file_trains_and_scores(tmp_path, here):
    """Nothing is registered: a function is named by its import path, from the folder in which the user works."""
    lines = ["def redness(images, prompts):", "    red, green, blue = images.unbind(1)"]
    (tmp_path / "my_scorers.py").write_text("\n".join([*lines, "    return (red - (green + blue) / 2).mean((1, 2))"]))
    named = ["_target_=my_scorers.redness", "_partial_=true"]
    own = ["+rewards.red.weight=5", *(f"+rewards.red.reward.{part}" for part in named)]
    here("train", *QUICK, "training.steps=1", "rewards=aesthetic", *own, "name=red")
    assert "reward/red" in (tmp_path / "runs" / "red" / "metrics.jsonl").read_text()
    here("generate", "prompt=a red circle", "seeds=[0,1]", "name=g", "sampling.steps=2")
    assert "wrote scores/s" in here("score", "rewards=clip", *own, "images=generated/g", "name=s")
    rows = [json.loads(line) for line in (tmp_path / "scores" / "s" / "scores.jsonl").read_text().splitlines()]
    with Image.open(tmp_path / "generated" / "g" / rows[0]["image"]) as picture:
        red, green, blue = np.asarray(picture, dtype=float).mean((0, 1)) / 255
    assert rows[0]["red"] == pytest.approx(red - (green + blue) / 2, abs=1e-5)
    assert len(rows) == 2


def test_text_and_paths_mean_themselves(tmp_path, here, monkeypatch):
    """Through the whole command: a name of digits, a path with `~`, spaces and parentheses, a prompt of any signs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("textcraftor.models.model.Model.check_prompts", lambda *_: None)
    prompt = 'a (red), "KKQ" {x: [1]} = it\'s \\${x} ${ \\'
    (tmp_path / "my prompts (1).txt").write_text(prompt + "\n")
    small = ("sampling.steps=1", "seeds=[0]")
    here("generate", *small, "prompts.path=~/my prompts (1).txt", "name=1_1_1")
    assert [one.caption for one in Records.read(tmp_path / "generated" / "1_1_1").records] == [prompt]
    here("generate", *small, f"prompt={prompt}", "run_dir=~/a, b=c")
    assert [one.caption for one in Records.read(tmp_path / "a, b=c").records] == [prompt]
    here("generate", "-m", *small, f"prompt={prompt}", "batch_size=1,2", "run_dir=~/sweep (1)")
    assert [one.caption for one in Records.read(tmp_path / "sweep (1)" / "1").records] == [prompt]


def test_a_sweep_gives_each_job_a_numbered_folder_and_names_the_best(tmp_path, here):
    said = here("train", "-m", *QUICK, "training.steps=1", "rewards=aesthetic", "seed=1,2", "run_dir=sweep")
    figures = [json.loads((tmp_path / "sweep" / str(job) / "summary.json").read_text())["held_out"] for job in (0, 1)]
    best = figures.index(max(figures))
    told = [f"sweep/{job} with {figures[job]:+.3f} (seed={job + 1})" for job in (best, 1 - best)]
    assert said.splitlines()[-1] == f"textcraftor: best of 2 jobs by held_out: {told[0]}; next {told[1]}"
