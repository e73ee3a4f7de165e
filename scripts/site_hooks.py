"""What the documentation site takes from the code: a page of keys for every command, and the project's own files.

mkdocs calls the functions that begin with `on_`; `make docs` builds the site.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from omegaconf import OmegaConf

from textcraftor.cli import COMMANDS
from textcraftor.config.commands import SCHEMAS
from textcraftor.config.compose import compose, groups, register
from textcraftor.config.rules import Rule, shown
from textcraftor.config.schema import Key, fields_of

ROOT = Path(__file__).parent.parent
PROJECT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
KEYS_HEAD = """\
# Commands and keys

Of every command, read off its typed configuration.

| command | what it does |
| --- | --- |
"""
CODE_OR_TAG = re.compile(r"`[^`]*`|<")
OUTWARD = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(#[^)]*)?\)")  # a link to a file beside the documentation


def on_config(config: Any) -> Any:
    """Name the pages of the commands in the navigation."""
    reference = next(part["Reference"] for part in config.nav if "Reference" in part)
    pages = ["keys/index.md", *({command: f"keys/{command}.md"} for command in COMMANDS)]
    reference.append({"Commands and keys": pages})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made of something else."""
    register()
    for source, page in PROJECT.items():
        files.append(File.generated(config, page, content=inward((ROOT / source).read_text(encoding="utf-8"))))
    listed = "".join(f"| [`{name}`]({name}.md) | {what} |\n" for name, (_, what) in COMMANDS.items())
    files.append(File.generated(config, "keys/index.md", content=KEYS_HEAD + listed))
    for command in COMMANDS:
        files.append(File.generated(config, f"keys/{command}.md", content=keys_page(command)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files beside the documentation lead to their pages, or say which file is meant."""
    return OUTWARD.sub(lambda link: linked(link[1], link[2]), markdown)


def linked(text: str, file: str) -> str:
    """What stands on the site for a link to a file beside the documentation."""
    return f"[{text}]({PROJECT[file]})" if file in PROJECT else f"{text} (`{file}`)"


def inward(text: str) -> str:
    """One of the project's own files, its links as they are on the site."""
    for source, page in PROJECT.items():
        text = text.replace(f"]({source})", f"]({page})")
    return text.replace("](docs/", "](")


def keys_page(command: str) -> str:
    """Every key of a command: what it takes, what it is unless given, what it is for."""
    config: Any = OmegaConf.to_container(compose(command, []), resolve=False)
    lines = [f"# textcraftor {command}\n", f"{COMMANDS[command][1].capitalize()}.\n"]
    lines.append("| key | takes | unless given | |\n| --- | --- | --- | --- |")
    lines += [
        f"| `{key}` | {cell(takes)} | {cell(default)} | {cell(about)} |"
        for key, takes, default, about in rows(command, config)
    ]
    return "\n".join(lines) + "\n"


def rows(command: str, config: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Each key with what it takes, its default and what it is for."""
    top = Key(SCHEMAS[command], Rule("a group of keys"))
    for key, known, owner in every(top):
        name = key.rpartition(".")[2]
        choices = groups().get(key)
        takes = f"{known.rule}{' or null' if known.nullable else ''}".replace("{key}", key).replace("{value}", "a")
        if choices:
            takes = f"one of {', '.join(choices)}, or its keys below"
        yield key, takes, default_of(config, key), docs_of(owner).get(name, "")


def every(key: Key, prefix: str = "") -> Iterator[tuple[str, Key, type]]:
    """Every dotted key below one, with the dataclass that it stands in; `<name>` stands for a name of the user's."""
    group = key.known if key.is_open else key.kind
    if dataclasses.is_dataclass(group):
        for name, below in fields_of(group).items():
            yield f"{prefix}{name}", below, group  # type: ignore[misc]
            yield from every(below, f"{prefix}{name}.")
    elif key.holds_names and (below := key.child("name")) is not None:
        yield from every(below, f"{prefix}<name>.")


def default_of(config: dict[str, Any], key: str) -> str:
    """The default of a key as it is typed; empty for a group of keys, and where it is to be given."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return ""
        value = value[part]
    return "" if isinstance(value, dict) or value == "???" else f"`{shown(value)}`"


@functools.cache
def docs_of(group: type) -> dict[str, str]:
    """What stands below each field of a dataclass, and of those that it extends."""
    found: dict[str, str] = {}
    for one in reversed(group.__mro__):
        if not dataclasses.is_dataclass(one):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0].body  # type: ignore[attr-defined]
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def cell(text: str) -> str:
    """Text within a table: no bar ends the cell, and `<name>` is no tag."""
    return CODE_OR_TAG.sub(lambda part: "&lt;" if part[0] == "<" else part[0], text).replace("|", "\\|")
