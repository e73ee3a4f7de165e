"""Files and folders that a configuration names: local already, or downloaded, locked and hash-checked.

One string names an asset: a local path, `hf://[datasets/]owner/repo[@revision]/file[#sha256=...]`,
`https://host/file#sha256=...` or, for a folder that `from_pretrained` takes, a hub id `owner/name`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import huggingface_hub
from filelock import FileLock
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging
from safetensors import SafetensorError
from tqdm.auto import tqdm

from textcraftor.errors import UsageError, one_line

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SHA256 = re.compile(r"[0-9a-f]{64}")
FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".json", ".txt", ".tsv")
# An address: how it begins, what it looks like in full, and how to say that to a user.
ADDRESSES = {
    "hf://": (
        r"hf://(?P<kind>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/@#]+))?/(?P<file>[^#]+)(#sha256=(?P<sha256>[0-9a-fA-F]{64}))?",
        "hf://[datasets/]owner/repo[@revision]/file[#sha256=<64 hexadecimal digits>]",
    ),
    "https://": (
        r"(?P<url>https?://[^/#]+/[^#]+)#sha256=(?P<sha256>[0-9a-fA-F]{64})",
        "https://host/file#sha256=<64 hexadecimal digits>",
    ),
}
ADDRESSES["http://"] = ADDRESSES["https://"]
# What `from_pretrained` reads of a scorer's repository, which often holds the same weights in several formats.
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
SAFETENSORS = ("model.safetensors", "model-*.safetensors")
BIN = ("pytorch_model.bin", "pytorch_model-*.bin")


def is_address(path: str) -> bool:
    """Whether a string names something to download rather than a path or a hub id."""
    return path.startswith(tuple(ADDRESSES))


def looks_local(path: str) -> bool:
    """Whether a string that is no address can only mean a local path."""
    return path.startswith((".", "/", "~")) or path.endswith(FILE_SUFFIXES)


def parse(path: str, what: str) -> dict[str, str | None]:
    """The parts of an address.

    Raises:
        UsageError: it is not of the form that its beginning promises.
    """
    pattern, form = next(pair for start, pair in ADDRESSES.items() if path.startswith(start))
    match = re.fullmatch(pattern, path)
    if match is None:
        raise UsageError(f"{what}: {path} is not of the form {form}")
    parts = match.groupdict()
    return parts | {"sha256": parts["sha256"] and parts["sha256"].lower()}


def local_file(path: str, what: str) -> Path:
    """The local file that `path` names, downloaded first where needed.

    Args:
        path: a local path, `hf://owner/repo[@revision]/file[#sha256=...]` or `https://host/file#sha256=...`.
        what: names the thing in error messages, such as "HPSv2 checkpoint".

    Raises:
        UsageError: it is not there, could not be downloaded, or has another hash.
    """
    if path.startswith("hf://"):
        return _hub_file(path, what)
    if is_address(path):
        return _url_file(path, what)
    file = Path(path).expanduser()
    if not file.is_file():
        wrong = "is a folder" if file.is_dir() else "is no regular file" if file.exists() else "does not exist"
        raise UsageError(f"{what}: {path} {wrong}: give a local file or {ADDRESSES['hf://'][1]}")
    return file


def folder_or_id(path: str, what: str) -> str:
    """What `from_pretrained` takes: a local folder that is there, `~` expanded, or a hub id as it is.

    Raises:
        UsageError: neither.
    """
    local = Path(path).expanduser()
    if local.exists():
        return str(local)
    if looks_local(path) or not HUB_ID.fullmatch(path):
        raise UsageError(f"{what}: {path} does not exist: give a local folder or a hub id owner/name")
    return path


def hub_folder(repo: str, what: str, weights: bool = True) -> Path:
    """The local copy of what transformers reads of a hub repository, downloaded first where needed.

    Args:
        repo: a hub id `owner/name`.
        what: names the thing in error messages.
        weights: with the model's weights, safetensors where the repository has them; else settings and tokenizer alone.
    """
    with hub_download(repo, what):
        wanted = [*SETTINGS, *(SAFETENSORS if weights else ())]
        folder = Path(huggingface_hub.snapshot_download(repo, allow_patterns=wanted, ignore_patterns="*/*"))
        if weights and not any(folder.glob("model*.safetensors")):
            huggingface_hub.snapshot_download(repo, allow_patterns=[*BIN], ignore_patterns="*/*")
            if not any(folder.glob("pytorch_model*.bin")):
                raise UsageError(f"{what}: {repo} holds neither {SAFETENSORS[0]} nor {BIN[0]}: give another hub id")
    check_folder(folder, repo, what)
    return folder


def check_folder(folder: Path, repo: str, what: str) -> None:
    """Compare every file of a hub repository's local copy with the hash that the hub names for it."""
    for file in sorted(folder.rglob("*")):
        hash_on_hub = _hash_on_hub(file)
        if hash_on_hub is not None and sha256_of(file) != hash_on_hub:
            raise _refuse(file, f"{repo}/{file.relative_to(folder)}", what, hash_on_hub, sha256_of(file))


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_dir() -> Path:
    """Where plain downloads lie: `TEXTCRAFTOR_CACHE`, or `~/.cache/textcraftor`."""
    return Path(os.environ.get("TEXTCRAFTOR_CACHE") or "~/.cache/textcraftor").expanduser()


@contextlib.contextmanager
def hub_download(path: str, what: str) -> Iterator[None]:
    """Show the hub's progress bars and nothing else of its client, and turn all that it raises into one line."""
    hidden, verbosity = are_progress_bars_disabled(), logging.get_verbosity()
    enable_progress_bars()
    logging.set_verbosity_error()  # every retry would be a line
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # the client's own, its HTTP library's and the system's: there is no common class
        raise _not_had(path, what, _hub_reason(error)) from error
    finally:
        logging.set_verbosity(verbosity)
        if hidden:
            disable_progress_bars()


@contextlib.contextmanager
def loading(path: str, what: str, expected: str) -> Iterator[None]:
    """Turn what the libraries raise over a folder or hub id that they cannot load into one line."""
    try:
        yield
    except UsageError:
        raise
    except ImportError as error:
        why = one_line(error).partition(". ")[0]
        raise UsageError(f"{what}: {path} needs a package that is not there: {why}: install it with pip") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"{what}: {path} cannot be loaded ({_hub_reason(error)}); expected {expected}") from error


def _not_had(path: str, what: str, reason: str) -> UsageError:
    address = path.partition("#")[0]
    return UsageError(f"{what}: {address} could not be had ({reason}): mend that, or give a local path instead")


def _refuse(file: Path, path: str, what: str, expected: str, actual: str) -> UsageError:
    """Remove a file with the wrong hash, and what a link in the hub's cache points to."""
    if file.is_symlink():
        (file.parent / os.readlink(file)).unlink(missing_ok=True)
    file.unlink(missing_ok=True)
    return UsageError(
        f"{what}: {path.partition('#')[0]} has sha256 {actual}, expected {expected}; the file is removed: "
        "run again, or correct the #sha256= that is given"
    )


def _no_network() -> str:
    return "HF_HUB_OFFLINE=1 forbids it" if huggingface_hub.is_offline_mode() else "the hub cannot be reached"


def _hub_reason(error: Exception) -> str:
    """Why the hub did not give something, in a few words."""
    for raised in (error, error.__cause__, error.__context__):  # diffusers wraps what the hub raises
        if isinstance(raised, GatedRepoError):
            return "its owner must grant access: ask on its page and log in with `hf auth login`"
        if isinstance(raised, RepositoryNotFoundError):
            return "no such repository, or a private one that needs `hf auth login`"
        if isinstance(raised, RevisionNotFoundError):
            return "no such revision"
        if isinstance(raised, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return f"it is not in the cache and {_no_network()}"
        if isinstance(raised, EntryNotFoundError):
            return "no such file in its repository"
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _hash_on_hub(file: Path) -> str | None:
    """The hash that the hub names for a large file: in its cache a link points to a blob of that name."""
    if not file.is_symlink():
        return None
    blob = Path(os.readlink(file)).name
    return blob if SHA256.fullmatch(blob) else None


def _hub_file(path: str, what: str) -> Path:
    """A file of a hub repository. The hub's client locks, resumes and caches; the hash is checked once, and here."""
    parts = parse(path, what)
    repo, name, revision = str(parts["repo"]), str(parts["file"]), parts["revision"]
    kind = "dataset" if parts["kind"] else None
    with hub_download(path, what):
        cached = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision, repo_type=kind)
        known = Path(cached) if isinstance(cached, str) else None  # else None or a sign of its own
        file = known or Path(huggingface_hub.hf_hub_download(repo, name, revision=revision, repo_type=kind))
    on_hub = _hash_on_hub(file)
    expected = parts["sha256"] or on_hub
    if expected is not None:
        actual = on_hub if known and on_hub else sha256_of(file)
        if actual != expected:
            raise _refuse(file, path, what, expected, actual)
    return file


def _url_file(path: str, what: str) -> Path:
    """A file of a plain web address; a file in the cache has had its hash checked."""
    parts = parse(path, what)
    try:
        name = Path(unquote(urlsplit(str(parts["url"])).path)).name[-100:]
        file = cache_dir() / f"{hashlib.sha256(path.encode()).hexdigest()[:16]}-{name}"
        if file.is_file():
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not file.is_file():  # another process may have got it meanwhile
                _download(str(parts["url"]), file, str(parts["sha256"]), what)
    except UsageError:
        raise
    except (OSError, HTTPException, ValueError) as error:  # the last of hosts and names that no request can hold
        reason = str(error) if isinstance(error, HTTPError) else str(getattr(error, "reason", error))
        raise _not_had(path, what, reason or type(error).__name__) from error
    return file


def _download(url: str, file: Path, expected: str, what: str) -> None:
    """Get a file under another name, and give it its own once its hash is right."""
    if huggingface_hub.is_offline_mode():
        raise _not_had(url, what, f"it is not in the cache and {_no_network()}")
    part = file.with_name(f"{file.name}.part")
    _receive(url, part)
    actual = sha256_of(part)
    if actual != expected:
        raise _refuse(part, url, what, expected, actual)
    part.replace(file)


def _receive(url: str, part: Path) -> None:
    """Write what a server sends to `part`, from where an earlier attempt ended if the server can."""
    start = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"User-Agent": "textcraftor"} | ({"Range": f"bytes={start}-"} if start else {}))
    try:
        response = urlopen(request, timeout=60)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing is left to send: the hash says whether all is there
            return
        raise
    with response:
        resumes = response.status == 206
        start = start if resumes else 0
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        bar = tqdm(desc=part.name[17:-5], total=total, initial=start, unit="B", unit_scale=True, disable=None)
        with part.open("ab" if resumes else "wb") as stream, bar:
            while block := response.read(2**20):
                stream.write(block)
                bar.update(len(block))
    if total is not None and part.stat().st_size < total:
        raise OSError(f"the connection broke after {part.stat().st_size} of {total} bytes, which are kept")
