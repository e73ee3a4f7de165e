"""Every recipe of docs/extending.md, run as it stands there."""

from __future__ import annotations

import json
import re
import shlex
import sys

import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from random_models import tokenizer_of
from transformers import T5Config, T5EncoderModel

from tests.conftest import PROMPTS, QUICK, ROOT
from textcraftor.cli import compose, main
from textcraftor.inference.generate import Sampling, generate
from textcraftor.models import families as package
from textcraftor.models.model import Model, families
from textcraftor.models.tuning import add_learners
from textcraftor.sampling.conditioning import ConditioningSchedule

PAGE = (ROOT / "docs" / "extending.md").read_text()


def block(kind: str, name: str) -> str:
    """The code block of the page that begins with a file's name, or the one of shell commands that holds a word."""
    blocks = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
    return next(one for one in blocks if (one.startswith(f"# {name}\n") if kind != "sh" else name in one))


@pytest.mark.parametrize(("file", "word"), [("my_rewards.py", "rewards.red"), ("my_policies.py", "last_but_one")])
def test_a_reward_and_a_policy_in_a_users_own_file(tmp_path, monkeypatch, file, word):
    (tmp_path / file).write_text(block("python", file))
    monkeypatch.chdir(tmp_path)
    quick = [override for override in QUICK if not override.startswith("gradient")]
    small = [*quick, "run_dir=run", *(["gradient.k=2"] if file == "my_rewards.py" else [])]
    monkeypatch.setattr(sys, "argv", [*shlex.split(block("sh", word)), *small, "tracker=null"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    main()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["grad_norm"] > 0 for line in lines)
    assert ("reward/red" in lines[0]) == (file == "my_rewards.py")
    assert file != "my_policies.py" or lines[0]["gradient_steps"] == 2


def small_pixart() -> PixArtSigmaPipeline:
    torch.manual_seed(0)
    tokenizer = tokenizer_of("T5TokenizerFast")
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=32,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    )
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=32, d_ff=32, d_kv=8, num_layers=2, num_heads=4)
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    scheduler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++")
    pipe = PixArtSigmaPipeline(tokenizer, text_encoder.eval(), vae.eval(), transformer.eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pixart(tmp_path, monkeypatch):
    """The page's family, as if its file lay beside the others."""
    name = "textcraftor/models/families/pixart_sigma.py"
    (tmp_path / "pixart_sigma.py").write_text(block("python", name))
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    families.cache_clear()
    yield small_pixart()
    families.cache_clear()
    sys.modules.pop("textcraftor.models.families.pixart_sigma", None)


def test_a_family_in_one_file(pixart):
    """Its pictures are the stock pipeline's, its encoder gets a gradient, all of it."""
    model, sampling = Model(pixart), Sampling(4, 4.5, 16, 24, scheduler="dpmsolver++")
    texts = PROMPTS[:2]
    ours = generate(model, [(text, seed) for seed, text in enumerate(texts)], ConditioningSchedule.original(), sampling)
    theirs = pixart(
        texts,
        num_inference_steps=4,
        height=16,
        width=24,
        use_resolution_binning=False,
        clean_caption=False,
        generator=[torch.Generator().manual_seed(seed) for seed in range(2)],
        output_type="pt",
    ).images
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=0, atol=1e-4)
    (learner,) = add_learners(model, {"text_encoder": {"lora": None, "lr": 1e-4, "span": [0, 1]}})
    assert not learner.unused
    branch = model.encode(texts, None, "tuned").prompt
    t = torch.tensor(500)
    model.predict(model.noise([0, 1], 16, 24), t, branch).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in learner.parameters)


def test_a_familys_configuration_composes(tmp_path):
    """The page's YAML, laid over the configuration that it begins from."""
    import yaml

    settings = yaml.safe_load(block("yaml", "conf/model/pixart_sigma.yaml"))
    assert settings.pop("defaults") == ["sd15", "_self_"]
    sampling = [f"model.sampling.{key}={value}" for key, value in settings["sampling"].items()]
    config = compose("train", ["model=sd15", f"model.path={settings['path']}", "prompts.path=p.txt", *sampling])
    assert config.sampling.steps == 20
