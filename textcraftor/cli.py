"""The command: `textcraftor COMMAND [key=value ...]`, configured by Hydra."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

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
LITERAL = ("prompt", "negative_prompt")  # taken as typed, never parsed
KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
}
USAGE = """\
usage: textcraftor COMMAND [key=value ...]

commands:
{commands}

textcraftor COMMAND --help shows every key; -m runs a sweep; HYDRA_FULL_ERROR=1 shows tracebacks."""


def config_dir() -> Path:
    """The folder of Hydra groups: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def _package_path(name: str) -> str:
    """The folder of an importable package."""
    import importlib.util

    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(f"package {name} cannot be imported")
    return str(Path(spec.origin).parent)


def register() -> None:
    """Tell OmegaConf of `${package:...}` and Hydra of mappings that take any key."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("package", _package_path, replace=True)
    ConfigStore.instance().store("open", OmegaConf.create({}, flags={"struct": False}), group="schema")


def quote_literals(overrides: Sequence[str]) -> list[str]:
    """Quote the values that users type freely, so that commas, parentheses and quotes mean themselves."""
    quoted = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and key.lstrip("+") in LITERAL and value != "null":
            escaped = value.replace("\\'", "\\\\'").replace("'", "\\'").replace("${", "\\${")
            override = f"{key}='{escaped}'"
        quoted.append(override)
    return quoted


def _keys(config, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def compose(command: str, overrides: Sequence[str]):
    """The configuration of a command, or one line that says which key is wrong and which is nearest."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from textcraftor.errors import UsageError

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        try:
            overrides = [*overrides, *base_of_runs(command, overrides)]
            config = hydra_compose(command, overrides=list(overrides))
            OmegaConf.resolve(copy.deepcopy(config))  # a second pass over the same would unescape what users typed
            _check_kinds(command, overrides, config)
            return config
        except (HydraException, OmegaConfBaseException) as error:
            plain = OmegaConf.to_container(hydra_compose(command), resolve=False)
            known = [*_keys(plain), *(path.name for path in config_dir().iterdir() if path.is_dir())]
            typed = [override.partition("=")[0].lstrip("+~") for override in overrides]
            wrong = [key for key in typed if key.split("@")[0] not in known]
            wrong.sort(key=lambda key: key not in str(error))  # keys under an open mapping are unknown too, and right
            near = difflib.get_close_matches(wrong[0], known, 1) if wrong else []
            lines = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"unknown key {wrong[0]}{hint}" if near else lines) from error


def base_of_runs(command: str, overrides: Sequence[str]) -> list[str]:
    """The model that the first named run was tuned on, where the command line names none."""
    pairs = [override.lstrip("+").partition("=")[::2] for override in overrides]
    runs = [value for key, value in pairs if key.startswith("tuned.")]
    if command == "app":
        runs += [run for key, value in pairs if key == "runs" for run in value.strip("[]").split(",")]
    if not runs or any(key in ("model", "model.path") for key, _ in pairs):
        return []
    from textcraftor.base_model import base_overrides
    from textcraftor.models.run_record import is_run

    run = Path(runs[0].strip("'")).expanduser()
    return base_overrides(run, config_dir() / "model", _package_path) if is_run(run) else []


def _check_kinds(command: str, overrides: Sequence[str], config) -> None:
    """Refuse a value that is not of its default's kind: as a truth value, `dry_run=fales` would be true."""
    from omegaconf import OmegaConf

    from textcraftor.errors import UsageError

    keys = {override: override.lstrip("+~").partition("=")[0] for override in overrides}
    groups = [override for override, key in keys.items() if (config_dir() / key.split("@")[0]).is_dir()]
    values = [key for override, key in keys.items() if override not in groups]
    defaults = _defaults(command, tuple(one for one in groups if keys[one] != "experiment")) if values else config
    for key in values:
        default, given = (OmegaConf.select(one, key) for one in (defaults, config))
        accepted, said = KINDS.get(type(default), ((), ""))
        if accepted and given is not None and type(given) not in accepted:
            raise UsageError(f"{key}={given} must be {said}")


@functools.cache
def _defaults(command: str, groups: tuple[str, ...]):
    from hydra import compose

    return compose(command, overrides=list(groups))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Show a user's mistake as one line and exit with 2; `HYDRA_FULL_ERROR=1` lets the traceback through."""
    from textcraftor.errors import UsageError

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
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def launch(command: str, overrides: list[str]) -> None:
    """Check the configuration, then hand over to Hydra, which runs one job or a sweep."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    register()
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

    if any(override.startswith("resume=") and override != "resume=null" for override in overrides):
        from textcraftor.training.resume import resumed_config

        with one_line_errors():
            config = resumed_config(overrides)
            module().check(config, Path(config.run_dir))
        work(config, Path(config.run_dir))
        return
    if all("=" in override or override.startswith("~") for override in overrides):  # no Hydra flags: one job
        with one_line_errors():
            config = compose(command, overrides)
            module().check(config, Path(config.run_dir))
        overrides = [*overrides, *base_of_runs(command, overrides)]
    sys.argv = [f"textcraftor {command}", *overrides]

    def task(config) -> float | str | None:
        try:
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
    config = compose(command, quote_literals(keys))
    module, folder = importlib.import_module(COMMANDS[command][0]), Path(config.run_dir)
    module.check(config, folder)
    module.run(config, folder)
    return folder


def paths_as_runs(overrides: Sequence[str]) -> list[str]:
    """`compare runs/a runs/b` means `compare 'runs=[runs/a,runs/b]'`."""
    paths = [override for override in overrides if "=" not in override and not override.startswith("-")]
    quoted = ",".join("'" + path.replace("'", "\\'") + "'" for path in paths)
    return [override for override in overrides if override not in paths] + ([f"runs=[{quoted}]"] if paths else [])


def main() -> None:
    command, *overrides = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        listed = "\n".join(f"  {name:15} {what}" for name, (_, what) in COMMANDS.items())
        print(USAGE.format(commands=listed))
    elif command in COMMANDS:
        launch(command, quote_literals(paths_as_runs(overrides) if command in ("compare", "app") else overrides))
    else:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        print(f"textcraftor: unknown command {command}; {hint}", file=sys.stderr)
        sys.exit(2)
