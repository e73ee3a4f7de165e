"""The prompt that a picture's file carries, as the common interfaces write it.

Ours and others' `prompt`, AUTOMATIC1111's `parameters` (also Forge's, SD.Next's, Fooocus' and SwarmUI's), ComfyUI's
graph, InvokeAI's metadata, NovelAI's description; in PNG's text, in EXIF's comment, or in a text file beside it.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from textcraftor.data.layouts import CAPTION_SUFFIXES
from textcraftor.errors import UsageError, one_line
from textcraftor.files.reading import MB, check_file, open_picture
from textcraftor.files.texts import text_of

MOST_SIDECAR = MB
CHUNKS = ("prompt", "parameters", "invokeai_metadata", "sd-metadata", "Dream")  # each a text, or JSON that holds it
PLACES = ("prompt", "positive_prompt", "sui_image_params", "image", "c")  # in JSON, from the outside in
# Inputs of a graph's text nodes, and of those that pass conditioning or pieces of text on.
TEXTS = ("text", "text_g", "t5xxl", "populated_text", "prompt", "text_l", "clip_l", "string", "value")
PASSED_ON = ("positive", "cond", "guider", "string", "text")
JOINTS = ("delimiter", "separator")  # what a node puts between its pieces of text
SETTINGS = re.compile(r"Negative prompt:|Steps: \d")  # how a line begins behind AUTOMATIC1111's prompt
DREAM = re.compile(r'"(.*?)" --?[A-Za-z]+ \d', re.DOTALL)  # InvokeAI's first format: "the prompt" -s 50 -W 512
CODES = {b"UNICODE\0": "utf-16", b"ASCII\0\0\0": "utf-8", b"JIS\0\0\0\0\0": "iso2022_jp", b"\0" * 8: "utf-8"}


def prompt_of(file: Path) -> str | None:
    """The prompt in a picture's metadata, else in a text file of its name; null where there is none.

    Raises:
        UsageError: the picture or the text file cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's over damaged EXIF
        with open_picture(file) as picture:
            try:
                inside = next(filter(None, map(_prompt, [*_chunks(picture), *_exif(picture)])), None)
            except Exception as error:  # Pillow raises a dozen kinds over damaged files
                line = f"{file} is damaged ({one_line(error)}): mend it or take it out of the folder"
                raise UsageError(line) from error
    return inside or next(filter(None, map(_prompt, _beside(file))), None)


def _chunks(picture: Image.Image) -> Iterator[str]:
    """Texts that the format has names for; PNG's may stand behind the pixels."""
    texts = getattr(picture, "text", None) or picture.info
    values = [texts.get(name) for name in CHUNKS]
    if str(texts.get("Software", "")).startswith("NovelAI"):
        values.append(texts.get("Description"))
    yield from (value for value in values if isinstance(value, str))


def _exif(picture: Image.Image) -> Iterator[str]:
    """EXIF's comment, and the fields that ComfyUI writes a graph into, as `prompt:{...}`."""
    exif = picture.getexif()
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes):
        encoding = CODES.get(comment[:8])
        body = comment[8:] if encoding else comment
        if encoding == "utf-16" and not body.startswith((b"\xff\xfe", b"\xfe\xff")):
            high, low = body[::2].count(0), body[1::2].count(0)  # of Latin letters the high byte is 0
            encoding = "utf-16-be" if high > low or (high == low and exif.endian != "<") else "utf-16-le"
        try:
            comment = body.decode(encoding or "utf-8")
        except UnicodeDecodeError:  # of cameras, whose makers write bytes of their own there
            comment = None
    for value in exif.values():
        if isinstance(value, str) and value[:7].lower() == "prompt:":
            yield value[7:]
    if isinstance(comment, str):
        yield comment.strip("\0 ")


def _beside(file: Path) -> Iterator[str]:
    """The text file of a picture's name."""
    for sidecar in (file.with_suffix(written) for suffix in CAPTION_SUFFIXES for written in (suffix, suffix.upper())):
        if sidecar.is_file():
            yield text_of(check_file(sidecar, MOST_SIDECAR).read_bytes(), sidecar)


def _prompt(text: str) -> str | None:
    """The prompt of a text: all of it, AUTOMATIC1111's up to its settings, or what JSON means by it."""
    text = text.strip()
    if with_options := DREAM.match(text):
        return with_options[1].strip() or None
    if not text.startswith("{"):
        return _before_settings(text) or None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _before_settings(text)
    return _in_graph(value) if _is_graph(value) else _in_object(value)


def _before_settings(text: str) -> str:
    """The lines before those that say the negative prompt and the settings."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if SETTINGS.match(line):
            return "\n".join(lines[:number]).strip()
    return text


def _in_object(value: Any) -> str | None:
    """The prompt of a JSON object, or of the objects and lists under the names of places."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, list):
        return next(filter(None, map(_in_object, value[:1])), None)
    if isinstance(value, dict):
        return next(filter(None, (_in_object(value[name]) for name in PLACES if name in value)), None)
    return None


def _is_graph(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(node, dict) and "class_type" in node for node in value.values())


def _in_graph(graph: Mapping[str, Any]) -> str | None:
    """The text that a graph's sampler is conditioned on: from the picture that is saved back to the first sampler,
    and from its positive input back to the texts."""
    outputs = [name for name, node in graph.items() if "Image" in _kind(node) and "images" in _inputs(node)]
    outputs.sort(key=lambda name: "Save" not in _kind(graph[name]))
    for name in _upstream(graph, outputs or graph):
        inputs = _inputs(graph[name])
        start = next((inputs[key] for key in ("positive", "guider") if key in inputs), None)
        if texts := [*dict.fromkeys(_texts(graph, start, set()))]:
            return ", ".join(texts)
    return None


def _kind(node: Any) -> str:
    return str(node.get("class_type", "")) if isinstance(node, dict) else ""


def _inputs(node: Any) -> Mapping[str, Any]:
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _source(value: Any) -> str:
    """The node that an input is linked to, as [node, output]; empty for none."""
    return str(value[0]) if isinstance(value, list) and len(value) == 2 else ""


def _upstream(graph: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    """Nodes from the given ones on against the links, the nearest first."""
    queue = [*names]
    seen = {*queue}
    while queue:
        name = queue.pop(0)
        yield name
        sources = [source for value in _inputs(graph[name]).values() if (source := _source(value)) in graph]
        queue += [source for source in dict.fromkeys(sources) if source not in seen]
        seen |= {*sources}


def _texts(graph: Mapping[str, Any], value: Any, seen: set[str]) -> Iterator[str]:
    """The texts behind an input: of a text node, or of the nodes that pass conditioning on."""
    if isinstance(value, str):
        yield from [value.strip()] if value.strip() else []
        return
    source = _source(value)
    if source not in graph or source in seen:
        return
    seen.add(source)
    inputs = _inputs(graph[source])
    for name in TEXTS:
        texts = [*_texts(graph, inputs.get(name), seen)]
        if texts:
            yield from texts
            return
    parts = [more for name, more in inputs.items() if name.startswith(PASSED_ON) and "negative" not in name]
    texts = [text for part in parts for text in _texts(graph, part, seen)]
    joint = next((inputs[name] for name in JOINTS if isinstance(inputs.get(name), str)), None)
    yield from texts if joint is None or not texts else [joint.join(texts)]
