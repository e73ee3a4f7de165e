"""The packed toybox serves as the smallest real model; jaxtyping's shapes are checked while tests run."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from jaxtyping import install_import_hook

# Before anything of the package is imported, so that every function on tensors is checked.
TENSOR_ROOMS = ["models.base", "models.model", "models.noise", "models.sampler", "sampling", "rewards"]
install_import_hook([f"textcraftor.{room}" for room in TENSOR_ROOMS], "beartype.beartype")

import pytest
import torch

from textcraftor.cli import compose, config_dir, register

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what libraries say while they are imported is not ours to mend
    from tests.servers import serving
    from textcraftor.inference.generate import Sampling
    from textcraftor.models.loading import load_pipeline
    from textcraftor.models.model import Model
    from textcraftor.models.tuning import add_learners

ROOT = config_dir().parent
TOYBOX = config_dir().parent / "textcraftor" / "toybox"
WEIGHTS = TOYBOX / "weights"
PROMPTS = ["a red circle and a blue star", 'a small green square on the left with the word "KKQ"', "a pink cross"]
# Small enough for seconds, real in every part.
QUICK = (
    "sampling.steps=3",
    "training.sampling.steps=3",
    "training.ema_decay=0",
    "gradient.k=2",
    "training.steps=2",
    "training.batch_size=2",
    "watch.every=2",
    "evaluation.prompts=2",
    "watch.prompts=1",
    "evaluation.seeds=[0,1]",
    "device=cpu",
)


def pytest_addoption(parser) -> None:
    parser.addoption("--long", action="store_true", help="more hostile folders, kills and command lines, for minutes")


@pytest.fixture(autouse=True, scope="session")
def _two_threads():
    """Of two cores, shared by the workers of `pytest -n 2`."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, min(2, len(os.sched_getaffinity(0))) // workers))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # of the commands that tests start


@pytest.fixture
def _one_thread():
    """As the launcher gives each process: how a sum is split changes its rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(path: str | Path = WEIGHTS / "pipeline") -> Model:
    """A fresh model of a pipeline's folder, the packed generator unless said."""
    return Model(load_pipeline(str(path)))


@pytest.fixture
def model() -> Model:
    """A fresh copy of the packed generator."""
    return load()


@pytest.fixture
def sampling() -> Sampling:
    return Sampling(steps=4, guidance_scale=3.0, height=64, width=64)


@pytest.fixture(scope="session")
def configure():
    """Compose a command's configuration from overrides."""
    register()
    return lambda command, *overrides: compose(command, [*overrides])


def add_text_encoder(model: Model):
    """A second encoder that learns, all of it; returns it."""
    add_learners(model, {"text_encoder": {"lora": None, "lr": 1e-4, "span": [0, 1]}})
    return model.encoders("tuned")["text_encoder"]


@pytest.fixture
def go(configure, tmp_path):
    """Run `train` with small settings; returns its folder."""
    from textcraftor.training.train import run

    def start(name: str, *overrides: str):
        folder = tmp_path / name
        run(configure("train", *QUICK, f"run_dir={folder}", *overrides), folder)
        return folder

    return start


@pytest.fixture
def server(monkeypatch):
    """A server that speaks the API of understanding models, see `tests.servers`."""
    with serving(monkeypatch) as server:
        yield server
