"""The command: `textcraftor COMMAND [key=value ...]`, configured by Hydra."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from textcraftor.config.compose import checked, compose, config_dir, package_path, register
from textcraftor.config.overrides import as_typed, quoted, split
from textcraftor.config.resume import resumed_config
from textcraftor.config.typed import typed
from textcraftor.errors import UsageError

__all__ = ["COMMANDS", "call", "compose", "config_dir", "main", "register"]

COMMANDS = {
    "train": ("textcraftor.training.train", "tune a text encoder by reward"),
    "tune-captions": ("textcraftor.training.tune_captions", "tune a UNet on captioned pictures"),
    "train-captioner": ("textcraftor.training.train_captioner", "train a language model to caption pictures"),
    "recaption": ("textcraftor.captioning.recaption", "write a further caption for every picture of a data set"),
    "letters": ("textcraftor.data.letters", "write pictures of text with captions"),
    "upsample": ("textcraftor.captioning.upsample", "rewrite prompts so that they say more"),
    "generate": ("textcraftor.inference.run", "make pictures with a tuned encoder, or without"),
    "evaluate": ("textcraftor.evaluation.run", "measure a tuned encoder against the original over a suite of prompts"),
    "export": ("textcraftor.inference.export", "write what was tuned for diffusers, web UIs and the hub"),
    "score": ("textcraftor.evaluation.score", "score a folder of pictures by any mix of rewards"),
    "compare": ("textcraftor.evaluation.compare", "set many runs beside each other: a table and a picture"),
    "app": ("textcraftor.inference.app", "a page with a slider for each tuned encoder"),
    "fetch": ("textcraftor.fetch", "download what a configuration names, ahead of time"),
}
USAGE = """\
usage: textcraftor COMMAND [key=value ...]

commands:
{commands}

textcraftor COMMAND --help shows every key; -m runs a sweep; HYDRA_FULL_ERROR=1 shows tracebacks."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Show a user's mistake as one line and exit with 2; `HYDRA_FULL_ERROR=1` lets the traceback through."""
    try:
        yield
    except Exception as error:
        # Hydra wraps what a constructor raises; the user's mistake is the cause.
        cause = error if isinstance(error, UsageError) else error.__cause__
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not isinstance(cause, UsageError):
            raise
        print(f"textcraftor: {cause}", file=sys.stderr)
        sys.exit(2)


def quiet_libraries() -> None:
    """Show our own progress, not every library's; errors still come through."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def base_of_runs(command: str, overrides: Sequence[str]) -> list[str]:
    """The model that the first named run was tuned on, where the command line names none."""
    keys = {key: override for override in overrides for key in [split(override)[1]]}
    named = [key for key in keys if key.startswith("tuned.") or (command == "app" and key == "runs")]
    if not named or "model" in keys or "model.path" in keys:
        return []
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from textcraftor.base_model import base_overrides
    from textcraftor.models.run_record import is_run

    given = OverridesParser.create().parse_override(keys[named[0]]).value()
    run = Path(str(given[0] if isinstance(given, list) and given else given)).expanduser()
    found = base_overrides(run, config_dir() / "model", package_path) if is_run(run) else []
    return as_typed(command, found)


def launch(command: str, overrides: list[str]) -> None:
    """Run one job, or hand over to Hydra, which runs a sweep or answers its own flags."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    register()
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    sys.path.append(os.getcwd())  # so that a user's own scorer in the working folder is found

    def module():  # takes seconds to import, which a question for help need not wait for
        quiet_libraries()
        return importlib.import_module(COMMANDS[command][0])

    def work(config, folder: Path) -> float | str | None:
        with one_line_errors():
            try:
                result = module().run(config, folder)
            finally:
                with contextlib.suppress(OSError):  # an empty folder is no result; one with files stays
                    folder.rmdir()
                    folder.parent.rmdir()
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"textcraftor: {result if isinstance(result, str) else f'wrote {os.path.relpath(folder)}'}")
        return result

    resumes = any(split(one)[1] == "resume" and split(one)[2] != "null" for one in overrides)
    if resumes or not any(split(one)[1].startswith(("-", "hydra")) for one in overrides):  # one job, all of it our own
        with one_line_errors():
            base = [] if resumes else base_of_runs(command, overrides)
            config = (resumed_config if resumes else compose)(command, [*overrides, *base])
            folder = Path(config.run_dir).expanduser()
            module().check(config, folder)
        work(config, folder)
        return
    with one_line_errors():
        overrides = checked(command, [*overrides, *base_of_runs(command, overrides)])
    sys.argv = [f"textcraftor {command}", *overrides]

    def task(config) -> float | str | None:
        try:
            with one_line_errors():
                config = typed(command, config)
            return work(config, Path(HydraConfig.get().runtime.output_dir))
        except SystemExit as ended:  # a sweep goes on where one of its jobs fails, if its sweeper allows that
            if ended.code == 2 and HydraConfig.get().mode == RunMode.MULTIRUN:
                raise RuntimeError("this job ended with an error, see above") from ended
            raise

    hydra.main(config_path=str(config_dir()), config_name=command, version_base="1.3")(task)()


def call(command: str, keys: Sequence[str]) -> Path:
    """Run a command from Python; returns the folder that it wrote.

    Raises:
        UsageError: what the command line would answer with one line.
    """
    register()
    overrides = as_typed(command, keys)
    config = compose(command, [*overrides, *base_of_runs(command, overrides)])
    module, folder = importlib.import_module(COMMANDS[command][0]), Path(config.run_dir).expanduser()
    module.check(config, folder)
    module.run(config, folder)
    return folder


def paths_as_runs(overrides: Sequence[str]) -> list[str]:
    """`compare runs/a runs/b` means `compare 'runs=[runs/a,runs/b]'`."""
    paths = [override for override in overrides if "=" not in override and not override.startswith("-")]
    runs = [f"runs=[{','.join(map(quoted, paths))}]"] if paths else []
    return [override for override in overrides if override not in paths] + runs


def main() -> None:
    command, *overrides = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        listed = "\n".join(f"  {name:15} {what}" for name, (_, what) in COMMANDS.items())
        print(USAGE.format(commands=listed))
    elif command in COMMANDS:
        overrides = paths_as_runs(overrides) if command in ("compare", "app") else overrides
        launch(command, as_typed(command, overrides))
    else:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        print(f"textcraftor: unknown command {command}; {hint}", file=sys.stderr)
        sys.exit(2)
