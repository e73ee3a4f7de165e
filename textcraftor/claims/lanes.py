"""Runs jobs side by side, each in a process of its own, what a job needs before it."""

from __future__ import annotations

import contextlib
import graphlib
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from textcraftor.claims.jobs import Job
from textcraftor.cli import call
from textcraftor.config.making import made
from textcraftor.errors import EndedRunError, UsageError, one_line
from textcraftor.files.writing import finish

LOG = ".log"  # after the name of a job's folder: what the job printed
RESUMED = ("train", "tune-captions")  # commands that go on by resume=; others by the same keys


class Here(Executor):
    """Runs each task at once, in this process."""

    def submit(self, task: Callable[..., Any], /, *values: Any, **named: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(task(*values, **named))
        except Exception as error:
            future.set_exception(error)
        return future


def do(jobs: Iterable[Job], lanes: int, records: dict[str, Any], say: Callable[[str], None]) -> dict[Path, str]:
    """Run the jobs that are not done yet, and what they need.

    Args:
        lanes: jobs at a time; with 1 they run in this process.
        records: what makes captioned pictures, see `config.claims.Records`.

    Returns:
        what went wrong, by the folder of the job, of those that failed and of those that need them.
    """
    waiting = {one.folder: one for job in jobs for one in job.waiting()}
    order = graphlib.TopologicalSorter(
        {folder: [need.folder for need in job.needs if need.folder in waiting] for folder, job in waiting.items()}
    )
    order.prepare()
    failed, running, count = dict[Path, str](), dict[Future, Path](), 0
    with lanes_of(min(lanes, max(len(waiting), 1))) as executor:
        while order.is_active():
            for folder in order.get_ready():
                job = waiting[folder]
                if lost := next((failed[need.folder] for need in job.needs if need.folder in failed), None):
                    failed[folder] = lost
                    order.done(folder)
                else:
                    running[executor.submit(carry_out, job, records)] = folder
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                folder, count = running.pop(future), count + 1
                if isinstance(error := future.exception(), EndedRunError):  # stopped by the user
                    raise error
                if error:
                    failed[folder] = f"{waiting[folder].command}: {one_line(error)}"
                say(f"{count} of {len(waiting)}: {failed.get(folder) or f'{waiting[folder].command} {folder.name}'}")
                order.done(folder)
    return failed


@contextlib.contextmanager
def lanes_of(count: int) -> Iterator[Executor]:
    """Processes with their share of the cores each; of one, this process."""
    if count == 1:
        yield Here()
        return
    threads = max(1, len(os.sched_getaffinity(0)) // count) if hasattr(os, "sched_getaffinity") else 1
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(count, context, begin, (threads,))
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def begin(threads: int) -> None:
    """Give a process its share of the cores."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def carry_out(job: Job, records: dict[str, Any]) -> None:
    """Do a job, or go on with it where it was begun; what it prints goes to a file beside its folder.

    Raises:
        UsageError: it failed; the file has the traceback.
    """
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    file = job.folder.with_name(job.folder.name + LOG)
    with file.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            if job.command == "records":
                draw(job, records)
            elif job.command in RESUMED and (job.folder / "config.yaml").exists():
                call(job.command, [f"resume={job.folder}"])
            else:
                call(job.command, job.keys)
        except EndedRunError:
            raise
        except Exception as error:  # of any library, perhaps one that another process cannot be handed
            traceback.print_exc()
            raise UsageError(f"{one_line(error)} ({file})") from None


def draw(job: Job, records: dict[str, Any]) -> None:
    """Captioned pictures of the model's world."""
    given = dict(key.split("=", 1) for key in job.keys if not key.startswith("run_dir="))
    numbers = {name: int(value) if value.isdecimal() else value for name, value in given.items()}
    made(records, folder=job.folder, **numbers)
    finish(job.folder, job.command)


def check_ended(failed: Sequence[str]) -> None:
    """Say in one line which jobs failed.

    Raises:
        UsageError: some did.
    """
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise UsageError(f"{failed[0]}{more}; the same command goes on with what is not done")
