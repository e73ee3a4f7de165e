"""What every tuning run does: from an objective to one folder with its results."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from omegaconf import DictConfig, OmegaConf

from textcraftor.errors import EndedRunError, QueuedAgainError, UsageError
from textcraftor.evaluation.evaluate import Evaluation, best_of, changes_by_prompt, compare
from textcraftor.evaluation.held_out import HeldOut, seed_spreads
from textcraftor.evaluation.report import before_after_sheet, write_report
from textcraftor.files.writing import FINISHED, locked, replacing, replacing_folder, write_json, write_text
from textcraftor.files.writing import finish as mark_finished
from textcraftor.inference.opening import BEGIN
from textcraftor.models.run_record import TUNED, Base, RunRecord, parts_in
from textcraftor.models.tuned import save_parts
from textcraftor.models.tuning import load_state
from textcraftor.training.checkpoint import Checkpoints
from textcraftor.training.forecast import forecast
from textcraftor.training.interrupt import REQUEUES, Interrupt, InterruptedRunError
from textcraftor.training.job import Job
from textcraftor.training.latents import LATENTS
from textcraftor.training.loop import NotFiniteError, tune
from textcraftor.training.phases import GB, peak_gb
from textcraftor.training.processes import HERE, from_main, processes_of_this_run, say
from textcraftor.training.standardising import standardise
from textcraftor.training.state import TrainingState
from textcraftor.training.tracking import MetricsFile, Stopwatch
from textcraftor.training.watch import Alarm, Watch
from textcraftor.training.watchdog import Watchdog

PARTS = ".parts"  # where what was tuned is written before it is moved to its place


def run_job(command: str, config: DictConfig, folder: Path, load: Callable[[DictConfig], Job]) -> float | str:
    """Evaluate, tune, evaluate again, report. Returns the held-out figure after tuning, for sweeps.

    Args:
        load: what a checked configuration means.
    """
    accelerator = Accelerator(cpu=config.device == "cpu", log_with=config.tracker, project_dir=folder)
    folder = Path(broadcast_object_list([str(folder)])[0])
    if config.training.batch_size < accelerator.num_processes:
        raise UsageError(
            f"training.batch_size={config.training.batch_size} is that of all {accelerator.num_processes} processes: "
            "give each at least one"
        )
    clock, remedy = Stopwatch(), f"textcraftor {command} resume={folder} goes on, with any number of processes"
    with Watchdog(config.processes.patience, remedy):
        job = load(config)
        if config.dry_run:
            return forecast(job)
        state = job.state()
        with locked(folder, "" if accelerator.is_main_process else str(accelerator.process_index)):
            figure = run_in(folder, command, job, state, accelerator, clock)
    accelerator.end_training()
    return figure


def run_in(
    folder: Path, command: str, job: Job, state: TrainingState, accelerator: Accelerator, clock: Stopwatch
) -> float:
    """The same, once nobody else writes into the folder."""
    config, checkpoints = job.config, Checkpoints(folder, job.config.training.keep_checkpoints)
    clock.lap("load")
    before = before_training(job, folder)
    clock.lap("before")
    if config.resume and checkpoints.load(state):
        say(f"goes on after step {state.step} of {config.training.steps}")
    say(job.precision)
    say(str(state.plan))
    for line in state.plan.told_places().values():
        say(f"memory: {line}")
    start_tracker(accelerator, config, folder, state.step)
    yaml = OmegaConf.to_yaml(config, resolve=True)
    if accelerator.is_main_process:  # whatever can be refused has been
        (folder / FINISHED).unlink(missing_ok=True)
        for name, evaluation in before.items():
            evaluation.save(before_file(folder, name))
        write_text(folder / "config.yaml", yaml)
    metrics = MetricsFile(folder / "metrics.jsonl", accelerator, state.step)
    watch = Watch(
        partial(job.look, job.schedule, job.watched, before["watched"]),
        held_out_on(job, before)["watched"],
        {name: Alarm(**limits) for name, limits in config.watch.alarms.items() if limits is not None},
        config.stop_on,
        folder / "samples",
    )
    try:
        with Interrupt() as interrupt:
            save = partial(checkpoints.save, config=yaml)
            if state.step == 0:
                watch.show(0, watch.before)
                metrics.look(watch.first, watch.alarms, watch.file(0))
            tune(job.objective, state, job.pace, metrics.write, partial(look, watch, metrics), save, interrupt)
    except NotFiniteError as error:
        if accelerator.is_main_process:
            write_json(folder / "not_finite.json", error.record)
        raise UsageError(
            f"{error}; prompts and seeds are in {folder / 'not_finite.json'}; "
            f"{command} resume={folder} training.skip_broken=N goes on and leaves out up to N such updates"
        ) from error
    except InterruptedRunError as error:
        say(f"{error}; textcraftor {command} resume={folder} goes on")
        if error.number == REQUEUES:
            queue_again()
        raise EndedRunError(error.exit_code) from error
    clock.lap("tuning")
    return finish(command, job, folder, state, before, watch, metrics, clock)


def held_out_on(job: Job, before: Mapping[str, Evaluation]) -> dict[str, HeldOut]:
    """What compares the held-out scorers on each of the prompts with the model before training."""
    spreads = seed_spreads(one.measures for one in before.values())
    return {
        name: HeldOut(one, job.rewards.weights, spreads, job.rewards.applies(one.prompts))
        for name, one in before.items()
    }


def queue_again() -> None:
    """Tell the launcher, now that everything is saved; submitit's handler ends the process where it queues the job."""
    try:
        signal.raise_signal(REQUEUES)
    except SystemExit as ended:
        raise QueuedAgainError(ended.code) from ended


def look(watch: Watch, metrics: MetricsFile, state: TrainingState) -> None:
    """Look at the watched prompts, and tell the tracker."""
    HERE.enter(f"looking at the watched prompts after step {state.step}")
    watch(state)
    metrics.look(state.watched["points"][-1], watch.alarms, watch.file(state.step))


def before_training(job: Job, folder: Path) -> dict[str, Evaluation]:
    """The figures of the model that training starts from; a resumed run reads them."""
    evaluations = dict[str, Evaluation]()
    for name, prompts in {"evaluated": job.evaluated, "watched": job.watched}.items():
        seeds = job.seeds if name == "evaluated" else tuple(job.config.watch.seeds)
        HERE.enter(f"looking at {len(prompts)} {name} prompts before training")
        stored = stored_before(before_file(folder, name), prompts, seeds) if job.config.resume else None
        evaluations[name] = stored or job.look(job.start, prompts)
    rewards = job.rewards
    for name in rewards.scorers:
        if any(name not in evaluation.measures for evaluation in evaluations.values()):
            raise UsageError(
                f"rewards.{name} scores no picture (NaN for all): mend it, or leave it out by rewards.{name}=null"
            )
    standardise(rewards, evaluations, job.config.normalize_rewards)
    return evaluations


def before_file(folder: Path, name: str) -> Path:
    """Where the figures before training are kept."""
    return folder / f"before_{name}.npz"


def stored_before(file: Path, prompts: list[str], seeds: Sequence[int]) -> Evaluation | None:
    """The figures of these prompts and seeds that a run kept, as the first process reads them; none where all processes
    have to make them again."""
    return from_main(_read_before(file, prompts, seeds) if processes_of_this_run().is_main_process else None)


def _read_before(file: Path, prompts: list[str], seeds: Sequence[int]) -> Evaluation | None:
    try:
        stored = Evaluation.load(file)
    except UsageError as error:
        say(f"{error}: made again")
        return None
    return stored if (list(stored.prompts), stored.seeds) == (prompts, tuple(seeds)) else None


def start_tracker(accelerator: Accelerator, config: DictConfig, folder: Path, step: int) -> None:
    """TensorBoard writes into the run's folder and forgets what a resumed run makes again; others get the settings, and
    W&B the run's name."""
    if config.tracker == "tensorboard":
        accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": step + 1}})
    elif config.tracker is not None:
        settings: Any = OmegaConf.to_container(config, resolve=True)
        accelerator.init_trackers("textcraftor", config=settings, init_kwargs={"wandb": {"name": folder.name}})


def finish(
    command: str,
    job: Job,
    folder: Path,
    state: TrainingState,
    before: Mapping[str, Evaluation],
    watch: Watch,
    metrics: MetricsFile,
    clock: Stopwatch,
) -> float:
    """Save the last and the best weights, evaluate the best, write the report; returns the held-out figure."""
    schedule, processes, saved = job.schedule, processes_of_this_run(), state.watched.get("saved_step")
    if saved == 0:
        say(
            "every look was worse than the model before training, so its weights are what is saved; those of step "
            f"{state.step} are in {folder / 'last'}"
        )
    HERE.enter("looking at the evaluated prompts after training")
    with state.averaged():
        if processes.is_main_process:
            save_run(job, folder / "last")
        load_state(state.learners, state.watched["best"])
        if processes.is_main_process:
            save_run(job, folder)
        after = job.look(schedule, job.evaluated, before["evaluated"])
    clock.lap("after")
    figure = held_out_on(job, before)["evaluated"].mean(after)
    peak = peak_gb(metrics.lines)
    seconds = clock.laps | {"tuning": round(sum(line["seconds"] for line in metrics.lines), 2)}
    summary = {
        "before": before["evaluated"].means(),
        "best_before": best_of(before["evaluated"].measures),
        "after": after.means(),
        "held_out": figure,
        "difference": compare(before["evaluated"], after),
        "difference_by_prompt": changes_by_prompt(before["evaluated"], after),
        "prompts": len(job.evaluated),
        "seeds": job.seeds,
        "weights": dict(job.rewards.weights),
        "steps": state.step,
        "batch_size": job.config.training.batch_size,
        "stopped_by": state.watched["stopped_by"],
        "skipped_updates": state.skipped,
        "conditioning": schedule.renamed({BEGIN: TUNED}).to_dict(),
        "saved_step": saved,
        "watched": [watch.first, *state.watched["points"]],
        "phases": phase_means(metrics.lines),
        "seconds": seconds | {"total": sum(seconds.values())},
        "memory": {"predicted_gb": state.plan.predicted / GB, "measured_gb": peak, "plan": str(state.plan)},
        "peak_memory_gb": peak,
    }
    say(f"memory: measured peak {peak:.2f} GB, predicted {state.plan.predicted / GB:.2f} GB")
    if processes.is_main_process:
        with replacing(folder / "before_after.png") as partial_file:
            before_after_sheet(before["evaluated"], after, rows=8).save(partial_file)
        metrics.outcome(state.step, summary["before"], summary["after"], folder / "before_after.png")
        grids = [file for file in sorted((folder / "samples").glob("step_*.png")) if file.stem[5:].isdecimal()]
        title = f"TextCraftor: {folder.name}"
        yaml = OmegaConf.to_yaml(job.config, resolve=True)
        write_report(folder / "report.html", title, summary, metrics.lines, before["evaluated"], after, yaml, grids)
        write_json(folder / "summary.json", summary)
        shutil.rmtree(folder / LATENTS, ignore_errors=True)
        mark_finished(folder, command)
    processes.wait_for_everyone()
    return figure


def phase_means(lines: list[dict[str, float]]) -> dict[str, float]:
    """Each phase's mean seconds a step, and peak memory."""
    names = {name for line in lines for name in line if name.startswith(("seconds/", "gb/"))}
    by_name = {name: [line[name] for line in lines if name in line] for name in sorted(names)}
    return {name: max(v) if name.startswith("gb/") else sum(v) / len(v) for name, v in by_name.items()}


def save_run(job: Job, folder: Path) -> None:
    """Each part in place of an older one, and the record of the run."""
    with replacing_folder(folder / PARTS) as partial_folder:
        save_parts(job.model, job.learners, job.config.tuned.values(), partial_folder)
    for path in sorted((folder / PARTS).iterdir()):
        with replacing_folder(folder / path.name) as partial_folder:
            partial_folder.rmdir()
            path.rename(partial_folder)
    (folder / PARTS).rmdir()
    parents = [{"run": str(run_folder), "weight": 1.0} for run_folder in job.config.tuned.values()]
    pipeline, conditioning = type(job.model.pipeline).__name__, job.schedule.renamed({BEGIN: TUNED}).to_dict()
    RunRecord(pipeline, Base.of(job.config.model), parts_in(folder), conditioning, parents).write(folder)
