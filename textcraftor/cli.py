"""The command: `textcraftor COMMAND [key=value ...]`, configured by Hydra."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from tqdm.auto import tqdm

from textcraftor.config.claims import overrides_of
from textcraftor.config.commands import SCHEMAS
from textcraftor.config.compose import checked, compose, config_dir, groups, package_path, register
from textcraftor.config.overrides import as_typed, quoted, split
from textcraftor.config.resume import AUTO, resumed_config
from textcraftor.config.schema import key_of
from textcraftor.config.typed import typed
from textcraftor.errors import EndedRunError, QueuedAgainError, UsageError, one_line, printable

__all__ = ["COMMANDS", "call", "compose", "config_dir", "main", "register"]

COMMANDS = {
    "train": ("textcraftor.training.train", "tune a text encoder by reward"),
    "tune-captions": ("textcraftor.training.tune_captions", "tune a UNet on captioned pictures"),
    "train-captioner": ("textcraftor.training.train_captioner", "train a language model to caption pictures"),
    "recaption": ("textcraftor.captioning.recaption", "write a further caption for every picture of a data set"),
    "letters": ("textcraftor.data.letters", "write pictures of text with captions"),
    "upsample": ("textcraftor.captioning.upsample", "rewrite prompts so that they say more"),
    "enhance": ("textcraftor.enhancement.enhance", "learn from what an understanding model advises on pictures"),
    "generate": ("textcraftor.inference.run", "make pictures with a tuned encoder, or without"),
    "evaluate": ("textcraftor.evaluation.run", "measure a tuned encoder against the original over a suite of prompts"),
    "export": ("textcraftor.inference.export", "write what was tuned for diffusers, web UIs and the hub"),
    "score": ("textcraftor.evaluation.score", "score a folder of pictures by any mix of rewards"),
    "compare": ("textcraftor.evaluation.compare", "set many runs beside each other: a table and a picture"),
    "claims": ("textcraftor.claims.claims", "check what papers claim, over training seeds and prompts"),
    "rate": ("textcraftor.evaluation.rate", "a page on which people say which pictures they prefer"),
    "ratings": ("textcraftor.evaluation.ratings", "what follows from it: strengths of models, agreement of raters"),
    "train-reward": ("textcraftor.training.train_reward", "learn a reward from what people prefer"),
    "app": ("textcraftor.inference.app", "a page with a slider for each tuned encoder"),
    "fetch": ("textcraftor.fetch", "download what a configuration names, ahead of time"),
}
# The keys that a command's bare paths are for.
PATHS = {"compare": "runs", "app": "runs", "ratings": "files", "train-reward": "ratings"}
SHOWS_TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
# What a disk refuses, and the remedy.
DISK = {
    errno.ENOSPC: "make room, or choose another run_dir=",
    errno.EDQUOT: "make room, or choose another run_dir=",
    errno.EROFS: "choose another run_dir=",
    errno.EACCES: "you have no right to it: choose another path",
    errno.EPERM: "you have no right to it: choose another path",
    errno.ENAMETOOLONG: "choose a shorter name= or run_dir=",
    errno.ENOTDIR: "a part of the path is a file: choose another path",
    errno.EISDIR: "it is a folder: choose another path",
    errno.EEXIST: "it is there already: choose another path",
    errno.ENOENT: "a part of the path is missing: look at how it is written",
    errno.ELOOP: "its links lead in a circle: choose another path",
    errno.EIO: "the disk fails: choose another path",
    errno.EMFILE: "too many files are open: close some",
}
MOST_LINE = 1500  # characters of a message
USAGE = """\
usage: textcraftor COMMAND [key=value ...]

commands:
{commands}

textcraftor COMMAND --help shows every key; -m runs a sweep; HYDRA_FULL_ERROR=1 shows tracebacks."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Show whatever goes wrong as one line; `HYDRA_FULL_ERROR=1` lets the traceback through.

    Exits with 2 for what a user can put right, with 1 for what nobody foresaw, whose traceback is kept in a file, and
    with 130 after Ctrl-C.
    """
    try:
        yield
    except (_Told, QueuedAgainError):
        raise
    except EndedRunError as error:
        raise _Told(error.code) from error
    except BaseException as error:
        if SHOWS_TRACEBACKS or isinstance(error, GeneratorExit):
            raise
        line, code = told(error)
        tqdm.write(f"textcraftor: {line}", file=sys.stderr)  # below a progress bar, where there is one
        raise _Told(code) from error


class _Told(SystemExit):
    """The error is already printed; a SystemExit of a library or a scorer has printed nothing."""


def told(error: BaseException) -> tuple[str, int]:
    """What an error says in one line, and what the command exits with."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    # Hydra and diffusers wrap what a constructor raises; the user's mistake is below.
    if mistake := next((one for one in causes if isinstance(one, UsageError)), None):
        return printable(one_line(mistake), MOST_LINE), 2
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C; the same command goes on or begins again", 130
    if isinstance(error, HydraException | OmegaConfBaseException):
        return one_line(error).partition(" Config search path")[0], 2
    number = disk_error(error)
    if number is not None:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return f"{where}{os.strerror(number)}: {DISK[number]}", 2
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's, of ~nobody/x
        return "a path begins with ~ and a name that is no user's: write the folder itself", 2
    if isinstance(error, SystemExit):
        return f"ended by SystemExit({error.code}); {traceback_file()} says where", 1
    what = f"{type(error).__name__}: {one_line(error)[:300]}" if str(error) else type(error).__name__
    return f"unforeseen {what}; the traceback is in {traceback_file()}", 1


def disk_error(error: BaseException) -> int | None:
    """The errno of a disk's error, also where only a library's message holds it."""
    if isinstance(error, OSError):
        return error.errno if error.errno in DISK else None
    match = re.search(r"os error (\d+)", str(error))  # safetensors'
    if match and int(match[1]) in DISK:
        return int(match[1])
    return errno.ENOSPC if "PytorchStreamWriter failed" in str(error) else None


def traceback_file() -> Path:
    """A file with the traceback of the error that is being handled."""
    with tempfile.NamedTemporaryFile("w", prefix="textcraftor-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.write(traceback.format_exc())
    return Path(file.name)


def quiet_libraries() -> None:
    """Show our own progress, not every library's; errors still come through."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def base_of_runs(command: str, overrides: Sequence[str], values: Mapping[str, Any] | None = None) -> list[str]:
    """The model that the first named run was tuned on, where neither overrides nor values name one."""
    keys: dict[str, Any] = {split(override)[1]: override for override in overrides} | dict(values or {})
    named = [key for key in keys if key.startswith("tuned.") or (command == "app" and key == "runs")]
    if not named or "model" in keys or "model.path" in keys:
        return []
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from textcraftor.base_model import base_overrides
    from textcraftor.models.run_record import is_run

    first = keys[named[0]]
    given = first if named[0] in (values or {}) else OverridesParser.create().parse_override(first).value()
    run = Path(str(given[0] if isinstance(given, list) and given else given)).expanduser()
    base = base_overrides(run, config_dir() / "model", package_path) if is_run(run) else []
    return as_typed(command, base)


def resumes(command: str, overrides: Sequence[str], values: Mapping[str, Any] | None = None) -> bool:
    """Whether a command goes on with a run."""
    if key_of(SCHEMAS[command], "resume") is None:
        return False
    named = any(split(one)[1] == "resume" and split(one)[2] not in ("null", AUTO) for one in overrides)
    return named or (values or {}).get("resume") not in (None, AUTO)


def configured(command: str, overrides: Sequence[str], values: Mapping[str, Any] | None = None) -> DictConfig:
    """The configuration of one job: of a run that goes on its own, else what the overrides compose.

    Args:
        values: plain ones by dotted key, which a Python program gives beside the overrides.
    """
    if resumes(command, overrides, values):
        return resumed_config(command, overrides, values)
    return compose(command, [*overrides, *base_of_runs(command, overrides, values)], values)


def join_launch() -> None:
    """Tell torch which process of how many this is, where submitit has started several and torchrun none."""
    if "SUBMITIT_EXECUTOR" in os.environ and "RANK" not in os.environ:
        import submitit

        if submitit.JobEnvironment().num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export()


def launch(command: str, overrides: list[str]) -> None:
    """Run one job, or hand over to Hydra, which runs a sweep or answers its own flags."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    register()
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if any("_target_" in override for override in overrides):
        sys.path.append(os.getcwd())  # so that a user's own scorer in the working folder is found

    def module():  # takes seconds to import, which a question for help need not wait for
        quiet_libraries()
        return importlib.import_module(COMMANDS[command][0])

    def work(config, folder: Path) -> float | str | None:
        with one_line_errors():
            join_launch()
            result = module().run(config, folder)
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"textcraftor: {result if isinstance(result, str) else f'wrote {os.path.relpath(folder)}'}")
        return result

    flagged = any(split(one)[1].startswith(("-", "hydra")) for one in overrides)
    if resumes(command, overrides) or not flagged:  # one job, all of it our own
        with one_line_errors():
            config = configured(command, overrides)
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
        except QueuedAgainError:
            raise
        except SystemExit as ended:  # a sweep goes on where one of its jobs fails, if its sweeper allows that
            if ended.code != 0 and HydraConfig.get().mode == RunMode.MULTIRUN:
                raise CompactHydraException("this job ended with an error, see above") from ended
            raise

    with one_line_errors():
        os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises what it would print in many lines
        try:
            hydra.main(config_path=str(config_dir()), config_name=command, version_base="1.3")(task)()
        except _Told:
            raise
        except SystemExit as ended:  # of --help and the like
            raise _Told(ended.code) from ended
        finally:
            if not SHOWS_TRACEBACKS:
                del os.environ["HYDRA_FULL_ERROR"]


def call(command: str, keys: Sequence[str]) -> Path:
    """Run a command with the keys of a command line; returns the folder that it wrote.

    Raises:
        UsageError: what the command line would answer with one line.
    """
    register()
    return carried_out(command, configured(command, as_typed(command, keys)))[0]


def carried_out(command: str, config: DictConfig) -> tuple[Path, Any]:
    """Run a command as configured; returns the folder that it wrote, and what it returned itself."""
    module, folder = importlib.import_module(COMMANDS[command][0]), Path(config.run_dir).expanduser()
    module.check(config, folder)
    return folder, module.run(config, folder)


def paths_as_list(command: str, overrides: Sequence[str]) -> list[str]:
    """`compare runs/a runs/b` means `compare 'runs=[runs/a,runs/b]'`, and `runs=runs/a` a list of this one."""
    if command == "claims":
        return claims_as_list(overrides)
    key = PATHS.get(command)
    single = {one: value for one in overrides for _, name, value in [split(one)] if name == key and is_path(value)}
    bare = [one for one in overrides if "=" not in one and not one.startswith("-")] if key else []
    if not bare and not single:
        return [*overrides]
    listed = f"{key}=[{','.join(map(quoted, [*single.values(), *bare]))}]"
    return [*(one for one in overrides if one not in bare and one not in single), listed]


def is_path(value: str) -> bool:
    """Whether the value of a key for a list of paths is one path; a list, null and interpolations are none."""
    return value.isprintable() and value not in ("", "null") and not value.startswith(("[", "$"))


def claims_as_list(overrides: Sequence[str]) -> list[str]:
    """`claims dial smoke` means `claims claim=[dial] scale=smoke`."""
    names = [one for one in overrides if "=" not in one and not one.startswith(("-", "~"))]
    chosen = overrides_of(names, groups()["claim"]) if names else []
    return [*(one for one in overrides if one not in names), *chosen]


def is_text(argument: str) -> bool:
    """Whether an argument of the command line is text, not bytes of another encoding."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def main() -> None:
    command, *overrides = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        listed = "\n".join(f"  {name:15} {what}" for name, (_, what) in COMMANDS.items())
        print(USAGE.format(commands=listed))
    elif command in COMMANDS:
        with one_line_errors():
            if strange := next((one for one in overrides if not is_text(one)), None):
                raise UsageError(f"{strange!r} is no text in UTF-8: write it again")
            overrides = as_typed(command, paths_as_list(command, overrides))
        launch(command, overrides)
    else:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        print(f"textcraftor: unknown command {command}; {hint}", file=sys.stderr)
        sys.exit(2)
