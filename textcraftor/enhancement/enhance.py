"""`textcraftor enhance`: an understanding model advises on pictures, and adapters learn the pictures made with its
advice, round after round (ArtAug, arXiv 2412.12888)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from textcraftor.captioning.understanding import check_understander
from textcraftor.config.enhancing import STAGES
from textcraftor.config.tune import tuned_parts
from textcraftor.enhancement.adapters import State, combined
from textcraftor.enhancement.methods import METHODS, Pairs
from textcraftor.enhancement.opening import Session, read_states, save_run, session_of
from textcraftor.enhancement.outcome import conclude, figures_of, gain, held_out_store, look
from textcraftor.enhancement.pairs import KEPT, check_filter, read_kept
from textcraftor.enhancement.stages import (
    Round,
    advise,
    filter_pairs,
    generate,
    picture_in,
    remake,
    suites_of,
    understander_of,
)
from textcraftor.errors import UsageError
from textcraftor.evaluation.statistics import interval_text
from textcraftor.files.reading import read_yaml
from textcraftor.files.writing import check_unfinished, is_finished, locked, write_text
from textcraftor.inference.generate import Sampling
from textcraftor.inference.mix import Mix, check_base
from textcraftor.models.loading import dtype_of
from textcraftor.models.run_record import is_run
from textcraftor.rewards.preprocessing import from_pil
from textcraftor.rewards.total import check_rewards
from textcraftor.training.densities import Densities
from textcraftor.training.fitting import FitSettings
from textcraftor.training.processes import processes_of_this_run, say, show

SETTINGS, RUN, FITS = "config.yaml", "run", "fits"  # of a round the last two: what it learned, and on the way there
MAY_DIFFER = ("stage", "rounds", "batch_size", "device", "run_dir", "name")  # between what goes on and what began


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot work before any model is loaded and before anything is written."""
    check_understander(understander_of(config))
    suites_of(config)
    Sampling(**config.sampling)
    check_rewards(config)
    check_filter(config)
    if len(config.tuned) > 1:
        raise UsageError(f"tuned names {', '.join(config.tuned)}: this begins with one run at most")
    check_base(config.tuned, config)
    Mix(dict(config.tuned))
    parts = dict(tuned_parts(config.tune))
    if whole := next((part for part, options in parts.items() if options.lora is None), None):
        raise UsageError(
            f"tune.{whole}.lora=null: this learns adapters; choose tune=denoiser_lora or another with _lora"
        )
    if len(rates := {part: options.lr for part, options in parts.items()}) and len({*rates.values()}) > 1:
        raise UsageError(
            f"tune: the learning rates {rates} differ, and adapters of all parts learn at one: give one lr"
        )
    for key in ("dtype", "scorer_dtype"):
        dtype_of(config, key)
    check_unfinished(folder, "an enhancement")
    if (folder / SETTINGS).exists():
        stored, ours = read_yaml(folder / SETTINGS), settings_of(config)
        if different := [key for key in ours if key not in free_in(folder) and ours[key] != stored.get(key)]:
            raise UsageError(f"run_dir={folder} holds the beginning of another enhancement, by {', '.join(different)}")


def free_in(folder: Path) -> set[str]:
    """The keys that may differ from those that an enhancement began with: what they are about is still to come."""
    coming = {KEPT: ("filter",), RUN: ("method", "training", "denoising", "tune")}
    later = {key for name, keys in coming.items() if not list(folder.glob(f"round_*/{name}")) for key in keys}
    return {*MAY_DIFFER, *later}


def settings_of(config: DictConfig) -> dict[str, Any]:
    settings: Any = OmegaConf.to_container(config, resolve=True)
    return settings


def run(config: DictConfig, folder: Path) -> str:
    """Rounds of advice, each in a folder of its own; the last one that gained on held-out prompts is the result, an
    ordinary run. What is interrupted goes on where the same command is given again."""
    check(config, folder)
    processes = processes_of_this_run()
    with locked(folder, "" if processes.is_main_process else str(processes.process_index)):
        return rounds_in(config, folder)


def rounds_in(config: DictConfig, folder: Path) -> str:
    """The same, once nobody else writes there. The method: generate, ask, make again, filter, learn, look."""
    learned, held_out = suites_of(config, show)
    if processes_of_this_run().is_main_process:
        write_text(folder / SETTINGS, OmegaConf.to_yaml(config, resolve=True))
    rounds = [Round(config, folder / f"round_{number}", learned) for number in range(config.rounds + 1)]
    if not is_finished(held_out_store(rounds[0].folder, held_out).folder):
        with session_of(config, {}) as session:
            look(rounds[0], held_out, session)
    for number, (last, this) in enumerate(pairwise(rounds), 1):
        if not is_run(this.folder / RUN):
            states = read_states(last.folder / RUN)
            for stage in STAGES:
                stage_of(stage)(this, states)
                processes_of_this_run().wait_for_everyone()
                if config.stage == stage:
                    return f"stage {stage} of round {number} is done; the same command without stage= goes on"
        with session_of(config, read_states(this.folder / RUN)) as session:
            look(this, held_out, session)
        rise = gain(config, figures_of(last, held_out), figures_of(this, held_out))
        interval = f"95 % interval {interval_text(rise, 3)} over {rise['n']} prompts"
        say(f"round {number}: held_out {rise['mean']:+.3f}, {interval}")
        if not rise["low"] > 0:
            break
    return conclude(config, folder, rounds[: number + 1], held_out)


def stage_of(stage: str) -> Callable[[Round, Mapping[str, State]], None]:
    """What a stage does with a round and the adapters of the rounds before."""
    return {"advise": advised, "remake": remade, "filter": lambda round_, _: filter_pairs(round_), "train": learn}[
        stage
    ]


def advised(round_: Round, states: Mapping[str, State]) -> None:
    """Make pictures, and ask about them."""
    if not is_finished(round_.before.folder):
        with session_of(round_.config, states) as session:
            generate(round_, session)
    advise(round_)


def remade(round_: Round, states: Mapping[str, State]) -> None:
    """Make pictures again with the advice."""
    if not is_finished(round_.after.folder):
        with session_of(round_.config, states) as session:
            remake(round_, session)


def learn(round_: Round, states: Mapping[str, State]) -> None:
    """Adapters of this round's pairs, added to those of the rounds before."""
    config, folder, rows = round_.config, round_.folder, read_kept(round_.folder)
    with session_of(config, states, learns=True) as session:
        new = METHODS[config.method](pairs_to_learn(config, folder, rows, session))
    joined = {}
    for part, state in new.items():
        both = [states[part], state] if part in states else [state]
        joined[part] = combined(both, [1.0] * len(both), rank=None)
    if processes_of_this_run().is_main_process:
        save_run(config, joined, folder / RUN)
        shutil.rmtree(folder / FITS, ignore_errors=True)


def pairs_to_learn(config: DictConfig, folder: Path, rows: Sequence[Mapping[str, Any]], session: Session) -> Pairs:
    """The kept pairs, encoded."""
    model, training = session.model, config.training
    if model.device.type != "cpu":
        model.checkpoint_blocks(denoiser=True, decoder=False)

    def encoded(side: str) -> Tensor:
        pictures = (picture_in(folder / side, row[side]) for row in rows)
        return torch.cat([model.to_latents(from_pil(picture)[None] * 2 - 1) for picture in pictures])

    rate = float(next(options.lr for _, options in tuned_parts(config.tune)))
    settings = FitSettings(
        training.steps, rate, training.lr_schedule, training.warmup, max_grad_norm=training.max_grad_norm
    )
    return Pairs(
        model,
        session.networks(),
        session.schedule,
        [row["prompt"] for row in rows],
        encoded("before"),
        encoded("after"),
        session.sampling.size,
        Densities(**config.denoising),
        training.batch_size,
        settings,
        folder / FITS,
        config.seed,
        training.beta,
    )
