"""One self-contained HTML file that shows a run: pictures before and after, curves, tables, configuration."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from textcraftor.evaluation.evaluate import Evaluation
from textcraftor.evaluation.judging.judged import table_cells
from textcraftor.evaluation.statistics import interval_text
from textcraftor.evaluation.verdict import direction, roles_of, verdict
from textcraftor.files.pictures import to_rgb
from textcraftor.files.reading import open_picture
from textcraftor.files.writing import write_text
from textcraftor.inference.pictures import cell_width, contact_sheet, data_url, png_url, to_pil, wrapped
from textcraftor.inference.sharing import public

LEFT_OUT = ("step", "seconds", "alarms", "worst_scorer", "denoiser_calls", "gradient_steps")
COSTS = ("seconds/", "gb/", "learning_rate/")
TEMPLATES = Path(__file__).parent
THUMBNAIL = 256  # pixels, the largest side of a picture in a report


def before_after_sheet(before: Evaluation, after: Evaluation, rows: int) -> Image.Image:
    """The first prompts, one a row: every seed before, then the same seeds after, the prompt below."""
    shown, seeds = range(min(rows, len(before.prompts))), len(before.seeds)
    pictures = [[to_pil(image) for image in (*before.images[row], *after.images[row])] for row in shown]
    room = seeds * cell_width(pictures[0][0])
    captions = [
        [wrapped(f"before: {before.prompts[row]}", room), *[""] * (seeds - 1), "after", *[""] * (seeds - 1)]
        for row in shown
    ]
    return contact_sheet(pictures, captions)


def _curves(lines: Sequence[Mapping], window: int) -> str:
    """Every figure over the steps, with a running mean."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in lines[-1] if name not in LEFT_OUT and not name.startswith(COSTS)]
    columns = 3
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(12, 2.6 * rows), squeeze=False)
    figure.subplots_adjust(left=0.06, right=0.98, top=1 - 0.3 / rows, bottom=0.3 / rows, wspace=0.25, hspace=0.6)
    steps = np.array([line["step"] for line in lines])
    for axis, name in zip(axes.flat, names, strict=False):
        values = np.array([line.get(name, np.nan) for line in lines])
        axis.plot(steps, values, color="#bbb", linewidth=0.8)
        width = min(window, len(values))
        axis.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"), color="#1f5fbf")
        axis.set_title(name, fontsize=10, y=1.0)  # a given height spares matplotlib a search for one
        axis.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
        axis.set_xlabel("step", fontsize=8, labelpad=1)
        axis.locator_params(nbins=4)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text: half the time, a smaller file
        figure.savefig(buffer, format="svg")
    pyplot.close(figure)
    return data_url(buffer.getvalue(), "svg+xml")


def render(template: str, folder: Path = TEMPLATES, **values) -> str:
    """A page from a template, which may extend this package's `base.html.j2`.

    Args:
        folder: where the template lies.
    """
    loader = jinja2.FileSystemLoader([folder, TEMPLATES])
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(interval_text=interval_text, direction=direction, **values)


def write_report(
    path: Path,
    title: str,
    summary: dict,
    metrics: Sequence[dict[str, float]],
    before: Evaluation,
    after: Evaluation,
    config: str,
    grids: Sequence[Path] = (),
    rows: int = 12,
) -> None:
    """Write the report of a finished run."""
    roles = roles_of(summary["weights"], [name for name, weight in summary["weights"].items() if weight])
    settings: Any = OmegaConf.create(config)
    html = render(
        "report.html.j2",
        title=title,
        verdict=verdict(summary["difference"], roles),
        roles=roles,
        settings=settings_of(settings, summary["weights"]),
        commands=commands_for(str(settings.get("run_dir", path.parent)), before.prompts[0]),
        summary=summary,
        curves=_curves(metrics, window=10) if metrics else None,
        watched=_curves(summary["watched"], window=1) if len(summary["watched"]) > 1 else None,
        grids=[{"step": int(grid.stem.rpartition("_")[2]), "picture": png_url(open_picture(grid))} for grid in grids],
        seeds=before.seeds,
        rows=[
            {
                "prompt": prompt,
                "before": [png_url(to_pil(image)) for image in before.images[i]],
                "after": [png_url(to_pil(image)) for image in after.images[i]],
            }
            for i, prompt in enumerate(before.prompts[:rows])
        ],
        config=config,
    )
    write_text(path, html)


def settings_of(config: Any, weights: Mapping[str, float]) -> dict[str, str]:
    """The few settings that tell most runs apart, in words."""
    tuned = {part: options for part, options in (config.get("tune") or {}).items() if options is not None}
    sampling = config.get("sampling") or {}
    sampler = f"{sampling.get('scheduler')}, {sampling.get('steps')} steps, guidance {sampling.get('guidance_scale')}"
    return {
        "model": public(str(OmegaConf.select(config, "model.path"))),
        "learns": ", ".join(
            f"{part}{' by LoRA' if one.get('lora') else ''}, rate {one.lr}" for part, one in tuned.items()
        ),
        "rewards": ", ".join(
            f"{name} {weight:g}" if weight else f"{name} (held out)" for name, weight in weights.items()
        ),
        "gradient": str(OmegaConf.select(config, "gradient._target_") or "denoising loss").rpartition(".")[2],
        "sampler": sampler,
        "seed": str(config.get("seed")),
    }


def commands_for(run_dir: str, prompt: str) -> list[str]:
    """What to type next, to use what a run tuned."""
    tuned = shlex.quote(f"tuned.a={run_dir}")
    return [
        f"textcraftor generate {tuned} {shlex.quote(f'prompt={prompt}')}",
        f"textcraftor app {shlex.quote(run_dir)}",
        f"textcraftor export {tuned}",
    ]


def write_evaluation(
    path: Path, title: str, summary: Mapping, config: str, worst: Sequence[Mapping], best: Sequence[Mapping]
) -> None:
    """Write the report of an evaluation.

    Args:
        worst, best: prompts with their pictures, {prompt, before, after}, the largest change first.
    """
    shown = [
        [
            {**row, **{side: [png_url(thumbnail(image)) for image in row[side]] for side in ("before", "after")}}
            for row in rows
        ]
        for rows in (worst, best)
    ]
    roles = roles_of(summary["scorers"], summary["trained_on"])
    sentence = verdict(summary["difference"], roles) if "difference" in summary else ""
    judged = table_cells(summary["judge"]) if "judge" in summary else None
    values: dict[str, Any] = {"summary": summary, "config": config, "roles": roles}
    values |= {"verdict": sentence, "judged": judged}
    html = render("evaluation.html.j2", title=title, worst=shown[0], best=shown[1], **values)
    write_text(path, html)


def write_ratings(
    path: Path, title: str, result: Mapping, config: str, pictures: Mapping[str, Mapping[str, Sequence[Mapping]]]
) -> None:
    """Write the report of people's ratings.

    Args:
        pictures: rows by question and heading, {prompt, pictures: [{file, label}]}; none at all if there are no files.
    """
    shown = {
        question: {
            heading: [
                {**row, "pictures": [{**one, "url": _thumbnail_url(one["file"])} for one in row["pictures"]]}
                for row in rows
            ]
            for heading, rows in parts.items()
        }
        for question, parts in pictures.items()
    }
    write_text(path, render("ratings.html.j2", title=title, result=result, config=config, pictures=shown))


def _thumbnail_url(file: Path) -> str:
    with open_picture(file) as opened:
        picture = to_rgb(opened, upright=True)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return png_url(picture)


def thumbnail(image: Tensor) -> Image.Image:
    """A picture, made smaller where it is large."""
    picture = to_pil(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture
