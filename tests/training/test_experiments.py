"""Every published setting runs, shrunk by one overlay; so do folders laid out as SD 1.5 and SD 2.1, and sweeps."""

from __future__ import annotations

import json
import math

import pytest
from random_models import make_pipeline

from tests.conftest import QUICK, TOYBOX
from textcraftor.cli import config_dir, register
from textcraftor.training.train import run

# One overlay for all: the embedded model's folder and scorers, and sizes for seconds. What an experiment is about, its
# policy, what it tunes, its losses and its rates, stays as it is.
SHRUNK = (
    "model=toybox",
    "prompts=model",
    "sampling.steps=5",
    "sampling.guidance_scale=3.0",
    "training.steps=1",
    *(
        override
        for override in QUICK
        if not override.startswith(("sampling.steps", "training.s", "training.ema", "gradient.k"))
    ),
    "memory.budget=auto",
    "scorer_dtype=float32",
    "stop_on=[]",
)


@pytest.mark.parametrize("experiment", sorted(file.stem for file in (config_dir() / "experiment").glob("*.yaml")))
def test_every_experiment_runs_shrunk(configure, tmp_path, experiment):
    config = configure("train", f"experiment={experiment}", *SHRUNK, f"run_dir={tmp_path}")
    assert math.isfinite(run(config, tmp_path))
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["gradient_steps"] > 0
    assert line["grad_norm"] > 0


@pytest.mark.parametrize(("layout", "tune"), [("sd15", "both"), ("sd21", "both_lora")])
def test_the_published_layouts_train(configure, tmp_path, layout, tune):
    """The configuration of `model=sd15` and `sd21` on folders of those layouts with small random weights."""
    make_pipeline(layout, tiny=True).save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(f"a {color} circle" for color in ("red", "blue", "green", "pink")))
    head = f"{TOYBOX}/weights/aesthetic.safetensors"
    config = configure(
        "train",
        *QUICK,
        f"model={layout}",
        f"model.path={tmp_path / 'model'}",
        f"prompts.path={tmp_path / 'prompts.txt'}",
        "rewards=aesthetic",
        f"model.scorers.aesthetic={{clip: '{TOYBOX}/weights/aesthetic_clip', head: '{head}'}}",
        f"tune={tune}",
        "sampling.height=64",
        "sampling.width=64",
        "sampling.guidance_scale=7.5",
        f"run_dir={tmp_path / 'run'}",
    )
    assert math.isfinite(run(config, tmp_path / "run"))
    assert {path.name for path in (tmp_path / "run").iterdir()} > {"summary.json", "report.html"}


@pytest.mark.parametrize("sweep", sorted(file.stem for file in (config_dir() / "sweep").glob("*.yaml")))
def test_every_sweep_maximises_what_train_returns(sweep):
    """Hydra resolves the preset with the Optuna sweeper, and every key that it varies exists."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", [f"sweep={sweep}"], return_hydra_config=True)
    assert config.hydra.sweeper._target_.endswith("OptunaSweeper")
    assert config.hydra.sweeper.direction == "maximize"
    for key in config.hydra.sweeper.params:
        assert OmegaConf.select(config, key) is not None, key
