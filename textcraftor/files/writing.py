"""The one way to write a file: under another name first, on the disk for good, then renamed.

Whoever is killed while writing leaves the file as it was, or whole. What was begun under another name is written over
by the next try.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from textcraftor.errors import UsageError

PARTIAL = ".partial."  # how the other name begins
FINISHED = "finished.json"  # the last file that a command writes


def passed(point: str, file: Path) -> None:
    """Called at every point at which a kill leaves something else behind; tests kill here."""


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to; it takes the file's place when the block ends well.

    Raises:
        OSError: no room, no right, too long a name; nothing is left of what was begun.
    """
    partial = file.with_name(PARTIAL + file.name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        passed("begun", file)
        yield partial
        _sync(partial)
        passed("written", file)
        partial.replace(file)
        _sync(file.parent)
        passed("done", file)
    except Exception:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """The same for a folder with everything in it."""
    partial, old = (folder.with_name(f".{kind}.{folder.name}") for kind in ("partial", "old"))
    try:
        for stale in (partial, old):
            shutil.rmtree(stale, ignore_errors=True)
        partial.mkdir(parents=True)
        passed("begun", folder)
        yield partial
        for file in partial.rglob("*"):
            _sync(file)
        passed("written", folder)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        _sync(folder.parent)
        passed("done", folder)
        shutil.rmtree(old, ignore_errors=True)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_text(file: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file; numbers that are not finite, which JSON does not know, become null."""
    write_text(file, json.dumps(_finite(value), indent=2, ensure_ascii=False))


def json_line(value: Any) -> str:
    """A line of a JSON-lines file, finite as `write_json` writes it."""
    return json.dumps(_finite(value), ensure_ascii=False) + "\n"


def append(file: Path, text: str) -> None:
    """Add whole lines to a file; a kill may cut the last one short, and readers leave such a line out."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        half = len(text) // 2
        stream.write(text[:half])
        stream.flush()
        passed("half", file)
        stream.write(text[half:])
        stream.flush()
        os.fsync(stream.fileno())
    passed("done", file)


def finish(folder: Path, command: str) -> None:
    """Mark a folder as finished: the last thing that a command writes."""
    write_json(folder / FINISHED, {"command": command})


def is_finished(folder: Path) -> bool:
    """Whether a command wrote all of a folder."""
    return (folder / FINISHED).is_file()


def check_unfinished(folder: Path, what: str) -> None:
    """Refuse to write into a folder that is finished."""
    if is_finished(folder):
        raise UsageError(f"run_dir={folder} already holds {what}: choose another run_dir= or name=, or delete it")


@contextlib.contextmanager
def locked(folder: Path, share: str = "") -> Iterator[None]:
    """Keep other commands from writing into a folder at the same time; an empty folder is no result, and goes.

    Args:
        share: of the folder's work, where several processes do one each.

    Raises:
        UsageError: another one is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".lock{share}", blocking=False)
    try:
        with lock:
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    Path(lock.lock_file).unlink()
                    folder.rmdir()
                    folder.parent.rmdir()
    except Timeout as error:
        raise UsageError(
            f"run_dir={folder} is in use by another textcraftor: wait for it, or choose another"
        ) from error


def _sync(path: Path) -> None:
    """Have the disk hold a file or folder before anything else happens."""
    if path.is_file():
        with path.open("r+b") as stream:
            os.fsync(stream.fileno())
    elif os.name != "nt":  # Windows opens no folders
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
