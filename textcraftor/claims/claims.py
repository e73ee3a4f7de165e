"""`textcraftor claims`: what papers claim, checked by running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from textcraftor.claims.entry import draw, entry_of
from textcraftor.claims.jobs import Job
from textcraftor.claims.lanes import check_ended, do
from textcraftor.claims.page import PICTURES, page
from textcraftor.claims.plan import Plan, plans_of
from textcraftor.config.compose import groups
from textcraftor.errors import UsageError
from textcraftor.evaluation.ledger import enter, read_ledger
from textcraftor.files.writing import locked, write_text

LEDGER, PAGE = "claims.json", "claims.md"


def check(config: DictConfig, folder: Path) -> None:
    """Refuse what cannot work before any model is loaded and before anything is written."""
    if not config.claim:
        names = ", ".join(groups()["claim"])
        raise UsageError(f"claim=[]: name claims, as textcraftor claims dial; there are {names}; all; smoke")
    if config.docs is not None and any(config.shrink.values()):
        raise UsageError(f"docs={config.docs} keeps what is measured at full size: leave it or the small scale out")
    if config.docs is not None and not Path(config.docs).expanduser().is_dir():
        raise UsageError(f"docs={config.docs} is no folder: give that of a checkout's documentation")
    for plan in plans_of(config, folder).values():  # composes every job's configuration
        plan.arms(plan.first_rates)


def run(config: DictConfig, folder: Path) -> str:
    """Do the jobs that are not done yet, judge the claims, and write `claims.json`, `claims.md` and pictures."""
    check(config, folder)
    plans = plans_of(config, folder)
    if config.dry_run:
        return forecast(plans)
    records: Any = OmegaConf.to_container(config.records, resolve=True)
    work = partial(do, lanes=config.lanes, records=records, say=partial(print, flush=True))
    with locked(folder):
        trials = {
            name: [job for jobs in plan.trials().values() for job in jobs.values()] for name, plan in plans.items()
        }
        failed = work(every(trials))
        rates = {name: plans[name].rates() for name, jobs in trials.items() if not lost(jobs, failed)}
        arms = {name: plans[name].arms(chosen) for name, chosen in rates.items()}
        failed |= work(every({name: every(claim) for name, claim in arms.items()}))
        for name, claim in arms.items():
            if not lost(every(claim), failed):
                keep(config, folder, name, plans[name], claim, rates[name])
    check_ended(list(failed.values()))
    return f"wrote {folder / PAGE}\n\n{(folder / PAGE).read_text(encoding='utf-8')}"


def keep(
    config: DictConfig,
    folder: Path,
    name: str,
    plan: Plan,
    arms: Mapping[str, Sequence[Job]],
    rates: Mapping[str, float],
) -> None:
    """Judge a claim, and write its results into the folder and, if asked for, into the documentation."""
    written: Any = OmegaConf.to_container(config.claim[name], resolve=False)
    entry = {name: entry_of(plan, arms, rates, written, command_of(config, name))}
    places = {folder: folder / LEDGER}
    if config.docs is not None:
        docs = Path(config.docs).expanduser()
        places[docs] = docs / "results" / LEDGER
    for place, ledger in places.items():
        enter(ledger, entry)
        draw(place / PICTURES / f"{name}.png", arms, config.shown)
        write_text(place / PAGE, page(read_ledger(ledger)))


def command_of(config: DictConfig, name: str) -> str:
    """The command line that checks one claim as it was checked."""
    scale = "smoke " if any(config.shrink.values()) else ""
    return f"textcraftor claims {scale}{name} seeds={config.seeds} limit={config.limit} pictures={config.pictures}"


def every(jobs: Mapping[str, Iterable[Job]]) -> list[Job]:
    """All jobs of a mapping."""
    return [job for several in jobs.values() for job in several]


def lost(jobs: Iterable[Job], failed: Mapping[Path, str]) -> bool:
    """Whether one of some jobs failed."""
    return any(job.folder in failed for job in jobs)


def forecast(plans: Mapping[str, Plan]) -> str:
    """Which jobs are to be done, in one line for each command; evaluations are those with the first learning rates."""
    needed: dict[Path, Job] = {}
    for plan in plans.values():
        several = [job for jobs in plan.trials().values() for job in jobs.values()]
        several += every(plan.arms(plan.first_rates))
        needed |= {one.folder: one for job in several for one in job.with_needs()}
    done = Counter(job.command for job in needed.values() if job.is_done)
    lines = [
        f"{command}: {count} jobs, {done[command]} of them done"
        for command, count in Counter(job.command for job in needed.values()).items()
    ]
    return "\n".join([f"{len(plans)} claims", *lines])
