"""The stages of a round: generate, ask, make again, filter. Each goes on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from tqdm.auto import tqdm

from textcraftor.config.making import made
from textcraftor.data.prompt_files import Say, given_prompts, place_of, read_prompts
from textcraftor.enhancement.opening import Session
from textcraftor.enhancement.pairs import KEPT, Pair, filtered, pair_of, write_pairs
from textcraftor.errors import UsageError
from textcraftor.evaluation.evaluate import measure
from textcraftor.evaluation.suite import PICTURES, Store, Suite
from textcraftor.files.pictures import to_rgb
from textcraftor.files.reading import open_picture, read_json_lines
from textcraftor.files.writing import append, finish, json_line, write_text
from textcraftor.inference.generate import batches
from textcraftor.rewards.clip import ClipScore
from textcraftor.rewards.preprocessing import from_pil
from textcraftor.sampling.regions import Region
from textcraftor.training.processes import processes_of_this_run, say

ADVICE = "advice.jsonl"  # of a round: the regions of each picture, or the fault of the answer
Job = tuple[int, int]  # a prompt's number and a seed


@dataclass(frozen=True)
class Round:
    """The folder of one round, and what pictures it makes."""

    config: DictConfig
    folder: Path
    suite: Suite

    @property
    def before(self) -> Store:
        return Store(self.folder / "before", self.suite)

    @property
    def after(self) -> Store:
        return Store(self.folder / "after", self.suite)

    def advice(self) -> dict[Job, dict[str, Any]]:
        """The understanding model's answer on each picture so far: its regions, or a fault."""
        whole = self.folder / ADVICE
        files = [whole] if whole.exists() else sorted(self.folder.glob("advice.*.part"))
        rows = [row for file in files for row in read_json_lines(file)]
        return {(row["prompt_index"], row["seed"]): row for row in rows if row.keys() >= {"prompt_index", "seed"}}


def mine(jobs: Sequence[Job]) -> Sequence[Job]:
    """This process's share."""
    processes = processes_of_this_run()
    return jobs[processes.process_index :: processes.num_processes]


def generate(round_: Round, session: Session) -> None:
    """The pictures that advice is asked on."""
    store, config = round_.before, round_.config
    waiting, part = store.waiting(mine(round_.suite.jobs)), processes_of_this_run().process_index
    store.fill(waiting, part, config.batch_size, partial(looked_at, round_.suite, config, session))
    close(store.folder)


def looked_at(
    suite: Suite, config: DictConfig, session: Session, jobs: Sequence[Job], **options: Any
) -> dict[str, np.ndarray]:
    """Pictures of some of a suite's jobs, and their figures.

    Args:
        options: of `generate`.
    """
    wanted = [(suite.prompts[index], seed) for index, seed in jobs]
    made_of = (session.model, session.schedule, session.sampling, session.rewards, session.judge)
    return measure(*made_of, wanted, config.batch_size, **options)


def understander_of(config: DictConfig) -> Any:
    """What advises: `understander`, else the one that comes with the model; None where there is none."""
    return config.get("understander") or config.model.understander


def advise(round_: Round) -> None:
    """Ask the understanding model about every picture without an answer."""
    config, processes = round_.config, processes_of_this_run()
    rows, known = round_.before.rows(), round_.advice()
    waiting = [job for job in mine(round_.suite.jobs) if job not in known]
    if waiting:
        understander = made(understander_of(config))
        for batch in tqdm(list(batches(waiting, config.batch_size)), desc="asking", unit="batch"):
            pictures = [picture_in(round_.before.folder, rows[job]["picture"]) for job in batch]
            advice = understander(pictures, [round_.suite.prompts[index] for index, _ in batch])
            lines = [
                {"prompt_index": index, "seed": seed, "regions": [asdict(one) for one in of_one.regions]}
                | {"fault": of_one.fault, "model": understander.name}
                for (index, seed), of_one in zip(batch, advice, strict=True)
            ]
            text = "".join("\n" + json.dumps(line, ensure_ascii=False) for line in lines)
            append(round_.folder / f"advice.{processes.process_index}.part", text)
    processes.wait_for_everyone()
    if processes.is_main_process:
        known = round_.advice()
        write_text(round_.folder / ADVICE, "".join(json_line(known[job]) for job in round_.suite.jobs))
        for part in round_.folder.glob("advice.*.part"):
            part.unlink()
    processes.wait_for_everyone()
    answers = round_.advice().values()
    faults = [row["fault"] for row in answers if row["fault"]]
    advised = sum(bool(row["regions"]) for row in answers)
    say(f"advice on {advised} of {len(answers)} pictures, {len(faults)} answers that cannot be used")
    if not advised:
        why = f"; the first: {faults[0]}" if faults else ": it finds nothing to improve"
        raise UsageError(f"{understander_of(config)._target_} gave no advice on {len(answers)} pictures{why}")


def remake(round_: Round, session: Session) -> None:
    """Make every picture with advice again, from the same noise or from the picture itself."""
    config, store = round_.config, round_.after
    rows, advice = round_.before.rows(), round_.advice()

    def again(jobs: Sequence[Job]) -> dict[str, np.ndarray]:
        options: dict[str, Any] = {"regions": [regions_of(advice[job]["regions"], config.remake.scale) for job in jobs]}
        if config.remake.strength < 1:
            pictures = [from_pil(picture_in(round_.before.folder, rows[job]["picture"])) for job in jobs]
            options |= {"originals": torch.stack(pictures), "strength": config.remake.strength}
        return looked_at(round_.suite, config, session, jobs, **options)

    advised = mine([job for job in round_.suite.jobs if advice[job]["regions"]])
    store.fill(store.waiting(advised), processes_of_this_run().process_index, config.batch_size, again)
    close(store.folder)


def filter_pairs(round_: Round) -> None:
    """Decide which pairs are learned from, where nobody has decided yet."""
    if (round_.folder / KEPT).exists() or not processes_of_this_run().is_main_process:
        return
    config, before, after, advice = round_.config, round_.before.rows(), round_.after.rows(), round_.advice()
    pairs = [pair_of(before[job], after[job], advice[job]["regions"]) for job in round_.suite.jobs if job in after]
    if config.filter.similarity is not None:
        pairs = with_similarity(pairs, round_.folder, config)
    judged = filtered(pairs, config.filter)
    title = f"TextCraftor: {round_.folder.parent.name}, {round_.folder.name}"
    write_pairs(round_.folder, judged, title, config)
    kept = sum(not pair.why_not for pair in judged)
    say(f"{kept} of {len(judged)} pairs are kept: {round_.folder / KEPT}")


@torch.no_grad()
def with_similarity(pairs: Sequence[Pair], folder: Path, config: DictConfig) -> list[Pair]:
    """Pairs with the cosine similarity of their pictures' CLIP embeddings as a score of the second."""
    clip = ClipScore.load(config.filter.clip)
    measured = []
    for pair in pairs:
        pictures = [from_pil(picture_in(folder / side, getattr(pair, side)))[None] for side in ("before", "after")]
        first, second = (clip.embed_pixels(clip.pixels(picture)) for picture in pictures)
        scores = {**pair.scores, "after": {**pair.scores["after"], "similarity": float((first * second).sum())}}
        measured.append(Pair(**{**vars(pair), "scores": scores}))
    return measured


def regions_of(stored: Iterable[dict[str, Any]], scale: float) -> list[Region]:
    """Regions that were written as JSON, their strength multiplied."""
    regions = [Region.of(one) for one in stored]
    return [Region(one.box, one.prompt, scale * one.strength) for one in regions]


def picture_in(folder: Path, file: str) -> Image.Image:
    """A picture of a store's folder."""
    with open_picture(folder / PICTURES / Path(file).name) as picture:
        return to_rgb(picture)


def close(folder: Path) -> None:
    """Mark a store as filled once every process has done its share."""
    processes = processes_of_this_run()
    processes.wait_for_everyone()
    if processes.is_main_process:
        finish(folder, "enhance")
    processes.wait_for_everyone()


def suites_of(config: DictConfig, say: Say | None = None) -> tuple[Suite, Suite]:
    """The pictures of a round, and those that no round learns from.

    Raises:
        UsageError: too few prompts.
    """
    count, prompts = config.evaluation.prompts, given_prompts(config.prompts, say)
    if config.prompts.held_out:
        held_out = read_prompts(config.prompts.held_out, config.prompts.column, "prompts.held_out", say)[:count]
    else:
        held_out = prompts[-min(count, len(prompts) // 2) :]
    apart = set(held_out)
    learned = [prompt for prompt in prompts if prompt not in apart][: config.limit]
    if not learned or len(held_out) < 2:
        raise UsageError(f"{place_of(config.prompts)}: too few different prompts; 4 are needed, 2 of them held out")
    return suite_of(learned, config.seeds), suite_of(held_out, config.evaluation.seeds)


def suite_of(prompts: Sequence[str], seeds: Sequence[int]) -> Suite:
    return Suite(tuple(prompts), ("",) * len(prompts), tuple(seeds))
