"""`textcraftor generate`: prompts and seeds to PNGs and a contact sheet."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig

from textcraftor.data.prompts import read_prompts
from textcraftor.errors import UsageError
from textcraftor.inference.generate import Sampling, generate, grid
from textcraftor.inference.pictures import contact_sheet, save_png, to_pil
from textcraftor.inference.tuned import check_tuned, load_runs
from textcraftor.models.loading import dtype_of, freeze, load_model


def prompts_of(config: DictConfig) -> list[str]:
    """The prompts of `prompt=` or `prompts.path=`, of which exactly one is given."""
    if (config.prompt is None) == (config.prompts.path is None):
        raise UsageError("give either prompt='...' or prompts.path=FILE")
    return [config.prompt] if config.prompt is not None else read_prompts(config.prompts.path)


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot work before any model is loaded and before anything is written."""
    if not all(prompt.strip() for prompt in prompts_of(config)):
        raise UsageError("prompt='' is empty: say what the picture shall show")
    if len(config.tuned) > 1:
        raise UsageError(f"tuned names {len(config.tuned)} encoders ({', '.join(config.tuned)}): one at a time so far")
    check_tuned(config.tuned)
    if not config.seeds:
        raise UsageError("seeds=[] is empty: give at least one")
    if (folder / "contact_sheet.png").exists():
        raise UsageError(f"run_dir={folder} already holds pictures: choose another run_dir= or name=")


def run(config: DictConfig, folder: Path) -> None:
    """Write `<prompt number>_<seed>.png` for every prompt and seed, and `contact_sheet.png`, a prompt a row."""
    check(config, folder)
    prompts, sampling = prompts_of(config), Sampling(**config.sampling)
    model = load_model(config)
    model.check_prompts([*prompts, sampling.negative_prompt])
    schedule = load_runs(model, config.tuned)
    freeze(model, dtype_of(config, "dtype")[0])
    jobs = grid(prompts, config.seeds)
    images = generate(model, jobs, schedule, sampling, config.batch_size)
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.dumps({"model": config.model.path, "tuned": dict(config.tuned), "sampling": dict(config.sampling)})
    for (prompt, seed), image in zip(jobs, images, strict=True):
        name = f"{prompts.index(prompt):04d}_{seed}.png"
        save_png(image, folder / name, {"prompt": prompt, "seed": seed, "settings": settings})
    rows = images.unflatten(0, (len(prompts), len(config.seeds)))
    contact_sheet([[to_pil(image) for image in row] for row in rows]).save(folder / "contact_sheet.png")
