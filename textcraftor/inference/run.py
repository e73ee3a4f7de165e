"""`textcraftor generate`: prompts and seeds, over a grid of weights if asked, to PNGs and a contact sheet."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from textcraftor.captioning.upsample import check_upsampler, upsampler_of
from textcraftor.data.prompt_files import Say, given_prompts
from textcraftor.errors import UsageError
from textcraftor.files.writing import check_unfinished, finish, locked, replacing, write_text
from textcraftor.inference.generate import Sampling, generate, grid
from textcraftor.inference.mix import Mix
from textcraftor.inference.opening import open_model
from textcraftor.inference.pictures import contact_sheet, save_png, to_pil
from textcraftor.sampling.regions import Region


def prompts_of(config: DictConfig, say: Say | None = None) -> list[str]:
    """The prompt of `prompt=`, or those of `prompts.path=` or `prompts.texts=`; exactly one of these is given."""
    if sum(one is not None for one in (config.prompt, config.prompts.path, config.prompts.texts)) != 1:
        raise UsageError("give either prompt='...' or prompts.path=FILE")
    return given_prompts(config.prompts, say) if config.prompt is None else [config.prompt]


def mixes(config: DictConfig) -> Iterator[tuple[dict[str, float], Mix]]:
    """The mix of every cell of the grid, row by row, and the weights that tell it from the others."""
    axes = [[(name, float(weight)) for weight in weights] for name, weights in config.grid.items()]
    for cell in itertools.product(*axes):
        yield dict(cell), Mix.of(config, **dict(cell))


def regions_of(config: DictConfig) -> list[Region]:
    """The regions of `regions=`."""
    given: Any = OmegaConf.to_container(config.regions, resolve=True)
    try:
        return [Region.of(one) for one in given]
    except UsageError as error:
        raise UsageError(f"regions: {error}") from error


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot work before any model is loaded and before anything is written."""
    if not all(prompt.strip() for prompt in prompts_of(config)):
        raise UsageError("prompt='' is empty: say what the picture shall show")
    if len(config.grid) > 2:
        raise UsageError(f"grid names {', '.join(config.grid)}: a sheet has two directions, so two at most")
    list(mixes(config))
    Sampling(**config.sampling)
    regions_of(config)
    check_upsampler(config)
    check_unfinished(folder, "pictures")


def run(config: DictConfig, folder: Path) -> None:
    """Write `<prompt number>_<seed>[_<weights>].png` for every prompt, seed and cell of the grid, `metadata.jsonl`, by
    which they are a data set, and `contact_sheet.png`: a prompt a row and a seed a column, or with a grid its cells
    for every prompt and seed."""
    check(config, folder)
    with locked(folder):
        make(config, folder)


def make(config: DictConfig, folder: Path) -> None:
    """What `run` does, while the folder is locked."""
    prompts, regions, cells = prompts_of(config, print), regions_of(config), list(mixes(config))
    opened = open_model(config, [mix for _, mix in cells], [*prompts, *(region.prompt for region in regions)])
    model, sampling, schedules = opened.model, opened.sampling, opened.schedules
    upsampler = upsampler_of(config)
    read = dict(zip(prompts, upsampler(prompts) if upsampler else prompts, strict=True))
    jobs, columns, lines = grid(prompts, config.seeds), [], []
    for (cell, _), schedule in zip(cells, schedules, strict=True):
        wanted, places = [(read[prompt], seed) for prompt, seed in jobs], [regions] * len(jobs)
        images = generate(model, wanted, schedule, sampling, config.batch_size, places)
        settings = {key: OmegaConf.to_container(config[key]) for key in ("tuned", "denoiser", "sampling", "regions")}
        settings |= {"model": config.model.path, "conditioning": schedule.to_dict()}
        label = " ".join(f"{name}={weight:g}" for name, weight in cell.items())
        for (prompt, seed), image in zip(jobs, images, strict=True):
            name = "_".join([f"{prompts.index(prompt):04d}", str(seed), *label.split()])
            metadata = {"prompt": prompt, "seed": seed, "settings": json.dumps(settings)}
            metadata |= {"upsampled": read[prompt]} if upsampler else {}
            save_png(image, folder / f"{name}.png", metadata)
            lines.append(json.dumps({"file_name": f"{name}.png", "caption": prompt, "seed": seed, **cell}))
        columns.append((label, [to_pil(image) for image in images]))
    across = len(config.seeds) if not config.grid else len(list(config.grid.values())[-1])
    pictures = [(picture, label) for i in range(len(jobs)) for label, column in columns for picture in [column[i]]]
    rows = [pictures[i : i + across] for i in range(0, len(pictures), across)]
    captions = [[label for _, label in row] for row in rows] if config.grid else None
    write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")
    sheet = contact_sheet([[picture for picture, _ in row] for row in rows], captions)
    with replacing(folder / "contact_sheet.png") as partial:
        sheet.save(partial)
    finish(folder, "generate")
