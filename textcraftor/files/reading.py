"""Reads what a run's folder holds, whoever wrote it: as data, within limits, and from nowhere else.

Nothing here runs, resolves or follows what a file says: no interpolation, no aliases, no links that lead out, no pipes.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml
from PIL import Image

from textcraftor.errors import UsageError, one_line

MB = 2**20
MOST_TEXT = 64 * MB  # of a file of settings, figures or rows
MOST_TABLE = 64 * 1024 * MB  # of a data set
MOST_YAML = MB // 8  # which takes some seconds to read
MOST_PICTURE = 256 * MB
MOST_PIXELS = 2**27  # of a picture: 134 million, 11,585 squared
MOST_FILES = 100_000  # in a run's folder
MOST_NUMBER = 2**64  # seeds have 64 bits
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow starts programs for some others


def check_file(file: Path, most: int = MOST_TEXT) -> Path:
    """Refuse a file that is missing, not regular, too large, or a link out of its folder.

    Args:
        most: bytes.
    """
    try:
        status = file.stat()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{file} is no regular file: take it away")
    if status.st_size > most:
        raise UsageError(f"{file} has {status.st_size:,} bytes, more than the {most:,} that such a file may have")
    if file.is_symlink():
        _check_link(file, root_of(file.parent))
    return file


def check_confined(folder: Path) -> None:
    """Refuse a folder that holds a link out of it, or anything that is neither a file nor a folder."""
    root, count = root_of(folder), 0
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path, count = Path(place, name), count + 1
            if path.is_symlink():
                _check_link(path, root)
            elif stat.S_IFMT(path.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                raise UsageError(f"{path} is neither a file nor a folder: take it away")
            if count > MOST_FILES:
                raise UsageError(f"{folder} holds more than {MOST_FILES:,} files: give the folder of a run")


def root_of(folder: Path) -> Path:
    """What a folder's links may lead to: the folder itself; in the hub's cache, its repository's."""
    whole = folder.resolve()
    kept = next((path for path in (whole, *whole.parents) if path.parent.name == "snapshots"), None)
    return kept.parents[1] if kept else whole


def _check_link(link: Path, root: Path) -> None:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{link} is a link that leads nowhere: take it away") from error
    if not target.is_relative_to(root):
        raise UsageError(f"{link} leads out of {root}, to {target}: take the link away")


def read_text(file: Path, most: int = MOST_TEXT) -> str:
    """A file's text in UTF-8."""
    try:
        return check_file(file, most).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is no text in UTF-8 (byte {error.start}): write or copy it again") from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object with finite numbers.

    Raises:
        UsageError: no such file, or something else in it.
    """
    return json_object(file, read_text(file))


def json_object(place: Path | str, text: str) -> dict[str, Any]:
    """The JSON object that a text holds, with finite numbers.

    Args:
        place: where it stands, for people.

    Raises:
        UsageError: it holds something else.
    """
    return _mapping(place, parsed(place, text, "JSON", _json))


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping of plain values; texts with `${...}` in them stay texts.

    Raises:
        UsageError: no such file, or something else in it: aliases, tags, dates, numbers that are not finite.
    """
    return _mapping(file, parsed(file, read_text(file, MOST_YAML), "YAML", lambda text: yaml.load(text, _PlainLoader)))


def read_json_lines(file: Path, most: int = MOST_TEXT) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file with one a line; a line that was cut short, as an interruption leaves it, is none."""
    for line in read_text(file, most).split("\n"):
        try:
            row = _json(line)
            check_plain(row)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def parse_json(place: Path | str, text: str) -> Any:
    """What a text in JSON holds; numbers may be NaN, as pandas writes them.

    Args:
        place: where it stands, for people.

    Raises:
        UsageError: it is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} cannot be read as JSON ({one_line(error) or type(error).__name__})") from error


def is_writable(text: str) -> bool:
    """Whether a text can be encoded; JSON may hold half a sign (a lone surrogate), which no file takes."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def parsed(place: Path | str, text: str, what: str, parse: Callable[[str], Any]) -> Any:
    """A text's value, made of plain values alone."""
    try:
        value = parse(text)
        check_plain(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{place} cannot be read as {what} ({one_line(error) or type(error).__name__})") from error
    return value


def _json(text: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no finite number")

    return json.loads(text, parse_constant=refuse)


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, of which a few lines can mean gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise ValueError("it has an alias")
        return super().compose_node(parent, index)


def check_plain(value: Any) -> None:
    """Refuse anything but null, truth values, finite numbers, texts, and lists and mappings of them."""
    if value is None or isinstance(value, bool | str):
        return
    if isinstance(value, int | float):
        if not abs(value) <= MOST_NUMBER:
            shown = value if isinstance(value, float) else "a whole number of many digits"
            raise ValueError(f"{shown} is no number that can be meant")
    elif isinstance(value, list):
        for one in value:
            check_plain(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key} is no text")
            check_plain(one)
    else:
        raise ValueError(f"{value} is a {type(value).__name__}, not a plain value")


def _mapping(place: Path | str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{place} holds a {type(value).__name__}, not an object with keys")
    return value


def shaped(place: object, value: Any, shape: Any, key: str = "") -> Any:
    """A plain value whose parts are of the types that are wanted.

    Args:
        place: where it stands, for people.
        shape: a type; `{str: shape}` for a mapping with any names, other mappings for one with these keys, which may
            have more, and need not have those that end in `?`; `[shape]` for a list. `float` takes whole numbers, and
            null as NaN.

    Raises:
        UsageError: a key is missing or a value of another type.
    """
    at = f"{place}: {key}" if key else f"{place}"
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise UsageError(f"{at} must be an object with keys, as runs write it")
        if set(shape) == {str}:
            return {name: shaped(place, one, shape[str], f"{key}.{name}".lstrip(".")) for name, one in value.items()}
        if missing := next((name for name in shape if not name.endswith("?") and name not in value), None):
            raise UsageError(f"{at} must have {missing}, as runs write it")
        parts = {name.removesuffix("?"): part for name, part in shape.items()}
        return {
            name: shaped(place, value[name], part, f"{key}.{name}".lstrip("."))
            for name, part in parts.items()
            if name in value
        }
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise UsageError(f"{at} must be a list, as runs write it")
        return [shaped(place, one, shape[0], f"{key}.{number}") for number, one in enumerate(value)]
    if shape is float and value is None:
        return math.nan
    wanted = (int, float) if shape is float else shape
    if not isinstance(value, wanted) or (isinstance(value, bool) and shape in (int, float)):
        raise UsageError(f"{at}={str(value)[:60]} must be of the type {shape.__name__}, as runs write it")
    return float(value) if shape is float else value


def open_picture(file: Path, stored: bytes | None = None) -> Image.Image:
    """A picture, its pixels and texts read.

    Args:
        file: where it is.
        stored: its bytes, if they stand somewhere else than in a file; then `file` only names it.

    Raises:
        UsageError: it is no picture, is damaged, or has more pixels or longer texts than any that can be meant.
    """
    source = check_file(file, MOST_PICTURE) if stored is None else io.BytesIO(stored)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on large pictures and on metadata
        try:
            picture = Image.open(source, formats=PICTURE_FORMATS)
        except Image.DecompressionBombError as error:
            raise UsageError(f"{file} has more than {MOST_PIXELS:,} pixels: shrink it") from error
        except Exception as error:  # Pillow raises a dozen kinds over a damaged file
            why = f" ({one_line(error)})" if type(error) is ValueError else ""  # too long a text
            raise UsageError(
                f"{file} is no picture that can be read{why}: mend it or take it out of the folder"
            ) from error
        try:
            _load(file, picture)
        except UsageError:
            picture.close()
            raise
    return picture


def _load(file: Path, picture: Image.Image) -> None:
    if picture.width * picture.height > MOST_PIXELS:
        raise UsageError(f"{file} has {picture.width} x {picture.height} pixels, more than {MOST_PIXELS:,}: shrink it")
    try:
        picture.load()
    except Exception as error:
        why = one_line(error) or type(error).__name__
        raise UsageError(f"{file} is damaged ({why}): mend it or take it out of the folder") from error


def read_arrays(file: Path) -> Mapping[str, np.ndarray]:
    """The arrays of an uncompressed `.npz`.

    Raises:
        UsageError: it is damaged, or holds anything but arrays.
    """
    try:
        with zipfile.ZipFile(check_file(file, 64 * 1024 * MB)) as packed:
            for one in packed.infolist():
                if one.compress_type != zipfile.ZIP_STORED:
                    raise UsageError(f"{file} is compressed, which runs do not write: take it away")
                with packed.open(one) as stream:
                    check_header(stream, one.file_size)
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except UsageError:
        raise
    except Exception as error:  # numpy and zipfile raise a dozen kinds over a damaged header
        raise UsageError(f"{file} is damaged ({one_line(error)}): take it away") from error


def check_header(stream: IO[bytes], size: int) -> None:
    """Refuse an array whose header asks for more numbers than there are bytes."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"an array of the shape {shape} in {size} bytes")
