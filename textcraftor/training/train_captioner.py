"""`textcraftor train-captioner`: a base captioner, and fine-tunes of it for each kind of caption (Betker et al. 2023,
section 2.1)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from tqdm.auto import tqdm

from textcraftor.captioning.prefix import PrefixCaptioner
from textcraftor.data.records import Records, check_records
from textcraftor.errors import UsageError
from textcraftor.files.writing import check_unfinished, finish, locked, write_text
from textcraftor.models.loading import device_of
from textcraftor.models.seeds import global_seed, run_rng
from textcraftor.training.fitting import FitSettings, fit
from textcraftor.training.processes import processes_of_this_run


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot work before any model is loaded."""
    check_records(config.data.path, config.data.captions)
    if not config.stages:
        raise UsageError("stages is empty: name at least one")
    before: list[str] = []
    for name, stage in config.stages.items():
        if stage.start is not None and stage.start not in before:
            raise UsageError(f"stages.{name}.start={stage.start} must name a stage before it, or be null")
        before.append(str(name))
    device_of(config.device)
    check_unfinished(folder, "a captioner")


def run(config: DictConfig, folder: Path) -> str:
    """Write one captioner a stage; a run that was interrupted goes on where the same command is given again."""
    check(config, folder)
    records, processes = Records.read(**config.data), processes_of_this_run()
    for name, stage in config.stages.items():
        if stage.kind is not None and stage.kind not in records.kinds:
            there = ", ".join(records.kinds) or "none"
            raise UsageError(f"stages.{name}.kind={stage.kind}: no record has such captions; there are {there}")
    with locked(folder, str(processes.process_index)):
        make(config, folder, records)
    return f"wrote {folder}: {', '.join(config.stages)}; {records.told()}"


def make(config: DictConfig, folder: Path, records: Records) -> None:
    """Train the stages that are not there yet."""
    processes = processes_of_this_run()
    set_seed(global_seed(config.seed))
    embeds: dict[int, Tensor] = {}
    for name, stage in config.stages.items():
        if (folder / name / "captioner.json").exists():
            continue
        captioner = start_of(config, folder, stage)
        embeds = embeds or embed(captioner, records)
        learned = {index: captions for index in embeds if (captions := captions_of(records, index, stage.kind))}
        fit_stage(captioner, embeds, learned, config, stage, folder, name)
        if processes.is_main_process:
            captioner.save(folder / name)
    if processes.is_main_process:
        write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        finish(folder, "train-captioner")
        for file in folder.glob("*.checkpoint.pt"):
            file.unlink()


def start_of(config: DictConfig, folder: Path, stage: DictConfig) -> PrefixCaptioner:
    device = device_of(config.device)
    if stage.start is None:
        return PrefixCaptioner(**config.captioner).to(device)
    captioner = PrefixCaptioner.load(str(folder / stage.start), device=device)
    for part in (captioner.language_model, captioner.mapper):
        part.requires_grad_(True)
    return captioner


def embed(captioner: PrefixCaptioner, records: Records, batch_size: int = 32) -> dict[int, Tensor]:
    """CLIP's embedding of every picture that can be read; `records` lists the others."""
    embeddings: dict[int, Tensor] = {}
    for start in tqdm(range(0, len(records), batch_size), desc="embedding", unit="batch"):
        pictures = {}
        for index in range(start, min(start + batch_size, len(records))):
            try:
                pictures[index] = records.picture(index)
            except OSError as error:
                records.skipped[records.records[index].key] = f"its picture cannot be read ({error})"
        if pictures:
            embeddings |= dict(zip(pictures, captioner.embed(list(pictures.values())), strict=True))
    if not embeddings:
        raise UsageError(f"none of {len(records)} pictures can be read")
    return embeddings


def captions_of(records: Records, index: int, kind: str | None) -> tuple[str, ...]:
    record = records.records[index]
    return record.captions if kind is None else tuple(record.synthetic.get(kind, ()))


def fit_stage(
    captioner: PrefixCaptioner,
    embeds: dict[int, Tensor],
    learned: dict[int, tuple[str, ...]],
    config: DictConfig,
    stage: DictConfig,
    folder: Path,
    name: str,
) -> None:
    """Train mapper and language model on the captions of one kind."""
    processes, indices = processes_of_this_run(), np.array(list(learned))
    share = -(-config.batch_size // processes.num_processes)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = run_rng(config.seed, step, processes.process_index)
        chosen = [int(index) for index in rng.choice(indices, share)]
        captions = [learned[index][int(rng.integers(len(learned[index])))] for index in chosen]
        return {"cross_entropy": captioner.loss(torch.stack([embeds[index] for index in chosen]), captions)}

    learning = nn.ModuleDict({"language_model": captioner.language_model, "mapper": captioner.mapper}).train()
    fit(name, learning, loss_of, FitSettings(stage.steps, stage.lr, warmup=config.warmup), folder)
    captioner.eval()
