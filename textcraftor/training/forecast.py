"""`dry_run=true`: what a run would need, from two real steps of it; nothing is written."""

from __future__ import annotations

import time

from textcraftor.inference.generate import generate, grid
from textcraftor.training.interrupt import Interrupt
from textcraftor.training.job import Job
from textcraftor.training.loop import Pace, tune
from textcraftor.training.phases import GB, peak_gb


def forecast(job: Job) -> str:
    """Memory and time of a run, in one line."""
    config, state = job.config, job.state()
    steps: list[dict[str, float]] = []
    pace = Pace(2, config.training.batch_size, config.training.max_grad_norm, 3, 3)
    with Interrupt() as interrupt:
        tune(
            job.objective, state, pace, lambda step, line: steps.append(line), lambda s: None, lambda s: None, interrupt
        )
    jobs = grid(job.evaluated, job.seeds)[: config.evaluation.batch_size]
    began = time.perf_counter()
    generate(job.model, jobs, job.schedule, job.sampling, config.evaluation.batch_size)
    each = (time.perf_counter() - began) / len(jobs)
    looks = -(-config.training.steps // config.watch.every) + 1
    pictures = 2 * len(job.evaluated) * len(job.seeds) + looks * len(job.watched) * len(config.watch.seeds)
    seconds = steps[-1]["seconds"] * config.training.steps + each * pictures
    peak = peak_gb(steps)
    return (
        f"{state.plan}; measured over two steps {peak:.2f} GB (predicted {state.plan.predicted / GB:.2f}); "
        f"{config.training.steps} steps of {steps[-1]['seconds']:.2f} s and {pictures} pictures of {each:.2f} s to "
        f"look at: about {seconds / 60:.0f} min; nothing was written"
    )
