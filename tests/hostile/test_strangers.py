"""A run's folder may come from a stranger: whatever is in it, no command runs it, follows it out of its folder, hangs
on it, tells a secret or takes numbers that cannot be meant; each refuses it in one line and writes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_leaves

from tests.hostile.conftest import command, contents, copied
from textcraftor.errors import UsageError
from textcraftor.evaluation.evaluate import Evaluation

WEIGHTS = "text_encoder/model.safetensors"
LORA = "text_encoder_lora/pytorch_lora_weights.safetensors"
RUNS = ("generate", "export", "evaluate", "start")
Damage = Callable[[Path], None]


def text(file: str, content: str | bytes) -> Damage:
    """Put this into a file."""

    def damage(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def pipe(file: str) -> Damage:
    """Put a named pipe in a file's place: whoever opens it waits for ever."""

    def damage(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        os.mkfifo(folder / file)

    return damage


def link(file: str, target: str = "../../../secret/key.txt") -> Damage:
    """Put a link out of the folder in a file's place."""

    def damage(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(folder.parent.parent / "secret" / "key.txt" if target.startswith("..") else target)

    return damage


def in_json(file: str, key: str, value: object) -> Damage:
    """Change a value; `...` takes the key out."""
    return _changed(file, key, value, json.loads, json.dumps)


def in_yaml(file: str, key: str, value: object) -> Damage:
    return _changed(file, key, value, yaml.safe_load, yaml.safe_dump)


def _changed(file: str, key: str, value: object, load: Callable, dump: Callable) -> Damage:
    def damage(folder: Path) -> None:
        whole = node = load((folder / file).read_text())
        *above, last = key.split(".")
        for name in above:
            node = node.setdefault(name, {})
        if value is ...:
            del node[last]
        else:
            node[last] = value
        (folder / file).write_text(dump(whole))

    return damage


def tensor(file: str, change: Callable[[torch.Tensor], torch.Tensor | None], which: str = "q_proj") -> Damage:
    """Change one tensor; None takes it out."""

    def damage(folder: Path) -> None:
        state = load_file(folder / file)
        name = next(key for key in state if which in key)
        changed = change(state.pop(name))
        save_file(state | ({} if changed is None else {name: changed}), folder / file)

    return damage


def poisoned(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(found: torch.Tensor) -> torch.Tensor:
        found.view(-1)[3] = value
        return found

    return change


def npz(change: Callable[[dict], dict], **options: bool) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "before_evaluated.npz"
        with np.load(file) as stored:
            arrays = change(dict(stored))
        (np.savez_compressed if options.get("compressed") else np.savez)(file, **arrays)

    return damage


def rows(change: Callable[[list[dict]], list[dict]]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "rows.parquet"
        found = change(pyarrow.parquet.read_table(file).to_pylist())
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), file)

    return damage


def state(change: Callable[[dict], object], file: str = "state.pt") -> Damage:
    """Change what a checkpoint holds, with sums that fit."""

    def damage(folder: Path) -> None:
        place = folder / "checkpoints" / "step_000001"
        changed = change(torch.load(place / file, weights_only=True))
        (place / file).unlink()  # shared with the source
        torch.save(changed, place / file)
        sums = json.loads((place / "sha256.json").read_text())
        sums[file] = hashlib.sha256((place / file).read_bytes()).hexdigest()
        (place / "sha256.json").write_text(json.dumps(sums))

    return damage


def with_nan(found: dict) -> dict:
    tensor = next(one for one in tree_leaves(found["learned"]) if isinstance(one, torch.Tensor))
    tensor.view(-1)[0] = float("nan")
    return found


ALIASES = "a: &a [x, x, x, x]\n" + "\n".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
DEEP = "[" * 100_000
EVIL = "evil.payload.go"

# How to damage a run, the commands to give it to, and what each says.
CASES: dict[str, tuple[Damage, tuple[str, ...], str]] = {
    # run.json and what it says
    "record is a pipe": (pipe("run.json"), RUNS, "run.json is no regular file|holds no run.json|neither a file"),
    "record is a link out": (link("run.json"), RUNS, "run.json leads out of"),
    "record is a list": (text("run.json", "[]"), RUNS, "run.json holds a list"),
    "record is deep": (text("run.json", DEEP), RUNS, "run.json cannot be read as JSON"),
    "record is huge": (text("run.json", b" " * (65 * 2**20)), ("generate",), "run.json has 68,157,440 bytes"),
    "record is no text": (text("run.json", b"\xff\xfe\x00"), RUNS, "run.json is no text in UTF-8 .byte 0"),
    "record is cut short": (text("run.json", '{"format": 2,'), RUNS, "run.json cannot be read as JSON"),
    "record has NaN": (text("run.json", '{"format": NaN}'), RUNS, "NaN is no finite number"),
    "record has a huge number": (text("run.json", '{"format": 1e999}'), RUNS, "inf is no number"),
    "record of another format": (in_json("run.json", "format", 9), RUNS, "format=9 must be 2"),
    "record without parts": (in_json("run.json", "parts", ...), RUNS, "must have parts"),
    "record with a strange part": (
        in_json("run.json", "parts", {"../../x": "whole"}),
        RUNS,
        "parts.../../x must be of",
    ),
    "record with a base of text": (in_json("run.json", "base", "x"), RUNS, "base must be an object"),
    "record with a base that is a number": (
        in_json("run.json", "base.path", 7),
        RUNS,
        "base.path=7 must be of the type str",
    ),
    "switch of text": (in_json("run.json", "conditioning.switch_timestep", "x"), RUNS, "switch_timestep=x must be of"),
    "late of text": (in_json("run.json", "conditioning.late", "x"), RUNS, "conditioning.late must be an object"),
    "weights of text": (in_json("run.json", "conditioning.late", {"tuned": "x"}), RUNS, "late.tuned=x must be of"),
    "parents of text": (in_json("run.json", "parents", "x"), RUNS, "parents must be a list"),
    "weights to nobody": (
        in_json("run.json", "conditioning.late", {"nosuch": 1.0}),
        RUNS,
        "late must give finite weights",
    ),
    "weights of nothing": (
        in_json("run.json", "conditioning.late", {"tuned": None}),
        RUNS,
        "late must give finite weights",
    ),
    "a switch that is no timestep": (
        in_json("run.json", "conditioning.switch_timestep", 2**62),
        RUNS,
        "must lie between",
    ),
    "parts that are not there": (in_json("run.json", "parts", {"text_encoder": "lora"}), RUNS, "but the folder holds"),
    "a base that tells a secret": (
        in_json("run.json", "base", {"path": "evil/${oc.env:HF_TOKEN}", "sha256": "", "config": ""}),
        ("generate",),
        r"\$\{oc.env:HF_TOKEN\}",
    ),
    "a base within the run": (
        in_json("run.json", "base", {"path": "strangers/base", "sha256": "", "config": ""}),
        ("generate", "export"),
        "lies within the run itself",
    ),
    # config.yaml, for exports and evaluations
    "configuration is a pipe": (pipe("config.yaml"), ("export", "evaluate", "resume"), "neither a file nor a folder"),
    "configuration is a link out": (link("config.yaml"), ("export", "resume"), "config.yaml leads out of"),
    "configuration with aliases": (text("config.yaml", ALIASES), ("export", "resume"), "it has an alias"),
    "configuration with a tag": (
        text("config.yaml", "a: !!python/object/apply:os.system [touch ran]"),
        ("export", "resume"),
        "config.yaml cannot be read as YAML",
    ),
    "configuration with a date": (text("config.yaml", "a: 2020-01-01"), ("export", "resume"), "not a plain value"),
    "configuration with infinity": (text("config.yaml", "a: .inf"), ("export", "resume"), "inf is no number"),
    "configuration is deep": (text("config.yaml", DEEP), ("export", "resume"), "cannot be read as YAML"),
    "configuration is a list": (text("config.yaml", "- 1"), ("export", "resume"), "holds a list"),
    "configuration with keys of numbers": (text("config.yaml", "1: 2"), ("export", "resume"), "the key 1 is no text"),
    "configuration without a sampler": (in_yaml("config.yaml", "sampling", {}), ("export",), "sampling must have"),
    "sampler of lists": (in_yaml("config.yaml", "sampling.steps", [1]), ("export", "resume"), "steps=.1.* must be"),
    # resuming
    "code of others": (in_yaml("config.yaml", "optim._target_", EVIL), ("resume",), "code that is not TextCraftor's"),
    "code that begins well": (
        in_yaml("config.yaml", "optim._target_", "textcraftor.cli.os.system"),
        ("resume",),
        "code that is not TextCraftor's",
    ),
    "our own code in the wrong place": (
        in_yaml("config.yaml", "optim._target_", "textcraftor.cli.call"),
        ("resume",),
        "code that is not TextCraftor's",
    ),
    "code of torch": (in_yaml("config.yaml", "optim._target_", "torch.load"), ("resume",), "code that is not"),
    "code below a scorer": (
        in_yaml("config.yaml", "rewards.aesthetic.reward.clip", {"_target_": EVIL}),
        ("resume",),
        "code that is not TextCraftor's",
    ),
    "arguments in hiding": (
        in_yaml("config.yaml", "rewards.aesthetic.reward._args_", ["x"]),
        ("resume",),
        "_args_=.* is not what runs write",
    ),
    "an interpolation that runs": (
        in_yaml("config.yaml", "prompts.path", "${package:evil.payload.x}"),
        ("resume",),
        "prompts.path=..package:evil.payload.x. does not exist",
    ),
    "an interpolation that makes": (
        in_yaml("config.yaml", "seed", "${oc.create:{_target_: evil.payload.go}}"),
        ("resume",),
        "seed must be a whole number",
    ),
    "an interpolation that tells": (
        in_yaml("config.yaml", "sampling.negative_prompt", "${oc.env:HF_TOKEN}"),
        ("resume",),
        "does not know .*hf_token|does not know .*HF_TOKEN",
    ),
    "our own code in another's place": (
        in_yaml("config.yaml", "model.judge._target_", "textcraftor.captioning.image_to_text.ImageToText"),
        ("resume",),
        "code that is not TextCraftor's",
    ),
    "pictures larger than any": (
        in_yaml("config.yaml", "sampling.height", 2**30),
        ("resume",),
        "must be at most 16384",
    ),
    "batches larger than any": (
        in_yaml("config.yaml", "training.batch_size", 10**9),
        ("resume",),
        "must be at most 100000",
    ),
    "sums that lead out": (
        text("checkpoints/step_000001/sha256.json", '{"../../../../secret/key.txt": "x"}'),
        ("resume",),
        "step_000001 is damaged",
    ),
    "a checkpoint of a list": (state(lambda found: [1]), ("resume",), "is not what runs write"),
    "a checkpoint of another step": (
        state(lambda found: found | {"step": 10**9}),
        ("resume",),
        "its step is 1000000000",
    ),
    "a checkpoint without weights": (
        state(lambda found: found | {"learned": {}}),
        ("resume",),
        "is not what runs write",
    ),
    "a checkpoint with NaN": (state(with_nan), ("resume",), "a weight is not finite"),
    "a checkpoint without an optimiser": (
        state(lambda found: found | {"optimizer": {}}),
        ("resume",),
        "is not what runs",
    ),
    "a watch of numbers": (state(lambda found: found | {"watched": 5}), ("resume",), "is not what runs write"),
    "a random state of nothing": (
        state(lambda found: found | {"random": None}, "process_0.pt"),
        ("resume",),
        "is not what runs write",
    ),
    "an argument that nothing takes": (
        in_yaml("config.yaml", "optim.evil", 1),
        ("resume",),
        "optim.evil|unknown key",
    ),
    "a key of another version": (in_yaml("config.yaml", "evil", 1), ("resume",), "evil"),
    "metrics are a link out": (link("metrics.jsonl"), ("resume",), "metrics.jsonl leads out of"),
    "samples are a link out": (link("samples/x.png"), ("resume", "generate"), "x.png leads out of"),
    "a checkpoint is a link out": (link("checkpoints/x"), ("resume", "generate"), "checkpoints/x leads out of"),
    "a checkpoint of code": (
        text("checkpoints/step_000001/state.pt", b"\x80\x04cos\nsystem\n."),
        ("resume",),
        "step_000001 is damaged .state.pt is truncated or altered",
    ),
    "a checkpoint with a file more": (
        text("checkpoints/step_000001/extra.pt", b"x"),
        ("resume",),
        "sha256.json does not list extra.pt",
    ),
    "sums that list nothing": (text("checkpoints/step_000001/sha256.json", "{}"), ("resume",), "does not list"),
    "sums of numbers": (text("checkpoints/step_000001/sha256.json", '{"a": 1}'), ("resume",), "cannot be read"),
    # weights
    "weights are a pipe": (pipe(WEIGHTS), RUNS, "model.safetensors is neither a file nor a folder"),
    "weights are a link out": (link(WEIGHTS), RUNS, "model.safetensors leads out of"),
    "weights cut short": (text(WEIGHTS, b"\x00" * 40), ("generate", "export"), "is no whole safetensors file"),
    "weights with a huge header": (text(WEIGHTS, b"\xff" * 8), ("generate", "export"), "is no whole safetensors file"),
    "weights of no bytes": (text(WEIGHTS, b""), ("generate",), "is no whole safetensors file"),
    "a weight that is no number": (
        tensor(WEIGHTS, poisoned(float("nan"))),
        ("generate", "export"),
        "q_proj.* nan; weights",
    ),
    "a weight without end": (tensor(WEIGHTS, poisoned(float("inf"))), ("generate",), "q_proj.* inf; weights must be"),
    "a weight of 1e38": (tensor(WEIGHTS, poisoned(1e38)), ("generate", "start"), "q_proj.* 1e.38; weights must be"),
    "whole numbers": (tensor(WEIGHTS, lambda x: x.int()), ("generate",), "q_proj.* has the type torch.int32"),
    "complex numbers": (
        tensor(WEIGHTS, lambda x: x.to(torch.complex64)),
        ("generate",),
        "has the type torch.complex64",
    ),
    "another shape": (tensor(WEIGHTS, lambda x: x[..., :3].contiguous()), ("generate",), "q_proj.* has the shape"),
    "a tensor less": (tensor(WEIGHTS, lambda x: None), ("generate",), "key .*q_proj.* is missing"),
    "a pickle": (
        lambda folder: (folder / WEIGHTS).rename(folder / "text_encoder/pytorch_model.bin"),
        ("generate", "export"),
        "holds no model.safetensors",
    ),
    "the denoiser's weights": (
        tensor("unet_lora/pytorch_lora_weights.safetensors", poisoned(float("nan")), "lora_A"),
        ("generate", "denoiser"),
        "lora_A.* nan; weights",
    ),
    "the denoiser's link": (link("unet_lora/x.json"), ("denoiser", "generate"), "x.json leads out of"),
    # what is shown of a run
    "a summary of text": (
        in_json("summary.json", "steps", "x"),
        ("export", "compare"),
        "steps=x must be of the type int",
    ),
    "a summary without figures": (text("summary.json", "{}"), ("export", "compare"), "must have"),
    "a summary of lists": (
        in_json("summary.json", "difference", []),
        ("export", "compare"),
        "difference must be an object",
    ),
    "a summary with infinity": (
        text("summary.json", '{"steps": Infinity}'),
        ("export", "compare"),
        "Infinity is no finite",
    ),
    "a summary is a pipe": (pipe("summary.json"), ("compare",), "summary.json is no regular file"),
    "a summary is a link out": (link("summary.json"), ("compare",), "summary.json leads out of"),
    "a picture of another kind": (
        text("before_after.png", b"%!PS\n(x) run"),
        ("export",),
        "is no picture that can be read",
    ),
}
ADAPTERS: dict[str, tuple[Damage, tuple[str, ...], str]] = {
    "half of an adapter": (tensor(LORA, lambda x: None, "lora_B"), ("generate",), "has no B.weight beside it"),
    "an adapter that is no number": (
        tensor(LORA, poisoned(float("nan")), "lora_A"),
        ("generate", "export"),
        "lora_A.* nan",
    ),
    "an adapter of whole numbers": (tensor(LORA, lambda x: x.int(), "lora_A"), ("generate",), "torch.int32"),
    "an adapter that is a link": (link(LORA), ("generate", "export"), "leads out of"),
    "an adapter that is cut short": (text(LORA, b"\x00" * 9), ("generate",), "no LoRA that diffusers can read"),
    "an adapter of another model": (
        tensor(LORA, lambda x: x[..., :3].contiguous(), "lora_A"),
        ("generate",),
        "do not fit",
    ),
}
EVALUATIONS: dict[str, tuple[Damage, tuple[str, ...], str]] = {
    "rows cut short": (text("rows.parquet", b"PAR1"), ("base",), "rows.parquet is damaged"),
    "rows are a pipe": (pipe("rows.parquet"), ("base",), "neither a file nor a folder"),
    "rows of another kind": (rows(lambda found: [{"a": 1}]), ("base",), "holds no rows with prompt and seed"),
    "rows with figures of text": (
        rows(lambda found: [row | {"aesthetic": "x"} for row in found]),
        ("base",),
        "aesthetic=x must be of the type float",
    ),
    "rows with infinity": (
        rows(lambda found: [row | {"aesthetic": float("inf")} for row in found]),
        ("base",),
        "damaged",
    ),
    "rows of other pictures": (link("pictures/00000_0.png"), ("base",), "leads out of"),
}
ALL = {**CASES, **ADAPTERS, **EVALUATIONS}


def arguments(kind: str, folder: Path, out: Path, other: Path) -> list[str]:
    """The command line that gives a folder to a command."""
    small = ["sampling.steps=2", "device=cpu"]
    tuned = f"tuned.a={folder}"
    match kind:
        case "generate":
            return ["generate", tuned, "mix.a=1", "prompt=a red circle", *small, f"run_dir={out}"]
        case "export":
            return ["export", tuned, "mix.a=1", "device=cpu", f"run_dir={out}"]
        case "evaluate":
            return ["evaluate", tuned, "mix.a=1", "suite=toybox", "limit=1", "seeds=[0]", *small, f"run_dir={out}"]
        case "start":
            return [
                "train",
                tuned,
                "training.steps=1",
                *small,
                "gradient.k=1",
                "training.sampling.steps=2",
                f"run_dir={out}",
            ]
        case "denoiser":
            return ["generate", f"denoiser.path={folder}", "prompt=a red circle", *small, f"run_dir={out}"]
        case "base":
            keys = ["suite=toybox", "limit=1", "seeds=[0,1]", "rewards=aesthetic", f"tuned.a={other}", "mix.a=1"]
            return ["evaluate", f"base={folder}", *keys, *small, f"run_dir={out}"]
        case "compare":
            return ["compare", str(folder), str(other), f"run_dir={out}"]
        case _:
            return ["train", f"resume={folder}", "training.steps=2"]


def pytest_generate_tests(metafunc) -> None:
    """Every folder goes to one command; with --long to each that reads what is wrong with it."""
    if "kind" in metafunc.fixturenames and "name" in metafunc.fixturenames:
        count = None if metafunc.config.getoption("long") else 1
        pairs = [(name, kind) for name, (_, kinds, _) in ALL.items() for kind in kinds[:count]]
        metafunc.parametrize(("name", "kind"), pairs)


def test_what_a_stranger_wrote_is_refused_in_one_line(name, kind, run, lora_run, evaluation, here):
    damage, _, words = ALL[name]
    source = run if name in CASES else lora_run if name in ADAPTERS else evaluation
    folder, out = copied(source, here / "strangers"), here / "out"
    (here / "evil").mkdir()
    (here / "evil" / "__init__.py").write_text("open('ran', 'w')")
    (here / "evil" / "payload.py").write_text("def go(*a, **b): open('ran', 'w')")
    damage(folder)
    before, secret = contents(folder), contents(here.parent / "secret")
    ended = command(*arguments(kind, folder, out, run))
    assert ended.code == 2, ended
    assert re.search(words, ended.line), ended.line
    assert not (here / "ran").exists(), "the stranger's code ran"
    assert "s3cr3t" not in ended.line
    assert contents(folder) == before, "something was written into the folder"
    assert contents(here.parent / "secret") == secret
    assert not out.exists()


def test_the_table_is_long_enough():
    assert len(ALL) >= 60
    assert sum(len(kinds) for _, kinds, _ in ALL.values()) >= 100


def test_an_export_shows_and_copies_nothing_of_a_strangers_own(run, here):
    """Settings with interpolations stay text, files that no layout knows stay behind, markup is no markup."""
    folder = copied(run, here / "strangers")
    in_yaml("config.yaml", "prompts.path", "${oc.env:HF_TOKEN}")(folder)
    in_yaml("config.yaml", "rewards", {"<img src=x>|a": {"weight": "[x](http://y)"}})(folder)
    in_json("run.json", "family", "<script>")(folder)
    for file in ("evil.py", "pytorch_model.bin", "flax_model.msgpack", "generation_config.json"):
        (folder / "text_encoder" / file).write_text("evil")
    settings = json.loads((folder / "text_encoder" / "config.json").read_text())
    settings |= {"num_hidden_layers": 100_000, "_attn_implementation": "kernels-community/evil", "auto_map": {"a": "b"}}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(settings))
    ended = command(*arguments("export", folder, here / "out", run))
    assert ended.code == 0, ended
    written = contents(here / "out")
    assert set(written) >= {"README.md", "run.json", "text_encoder/config.json", WEIGHTS, "finished.json"}
    whole = b"".join(content for name, content in written.items() if not name.endswith((".safetensors", ".png")))
    for word in (b"s3cr3t", b"evil", b"<script>", b"<img", b"http://y", b"100000"):
        assert word not in whole, word
    assert not [name for name in written if name.endswith((".py", ".bin", ".msgpack"))]
    ours = json.loads((run / "text_encoder" / "config.json").read_text())
    theirs = json.loads(written["text_encoder/config.json"])
    assert theirs["num_hidden_layers"] == ours["num_hidden_layers"]
    assert all(
        torch.equal(value, load_file(run / WEIGHTS)[key]) for key, value in load_file(here / "out" / WEIGHTS).items()
    )


@pytest.mark.parametrize(
    "damage",
    [
        text("before_evaluated.npz", b"PK\x03\x04"),
        text("before_evaluated.npz", b""),
        npz(lambda arrays: {**arrays, "images": np.array([{}], dtype=object)}),
        npz(lambda arrays: {**arrays, "measures/aesthetic": np.array(["x"])}),
        npz(lambda arrays: {**arrays, "measures/aesthetic": np.zeros((7, 7))}),
        npz(lambda arrays: {}),
        npz(lambda arrays: {**arrays, "images": arrays["images"].astype(np.float32)}),
        npz(lambda arrays: {**arrays, "measures/total": np.full_like(arrays["measures/total"], np.inf)}),
        npz(lambda arrays: {**arrays, "measures/total": np.full_like(arrays["measures/total"], np.nan)}),
        npz(lambda arrays: {**arrays, "seeds": np.array([np.inf, 1])}),
        npz(lambda arrays: arrays, compressed=True),
        lambda folder: (folder / "before_evaluated.npz").unlink(),
    ],
)
def test_damaged_figures_are_named(run, here, damage):
    damage(copied(run, here / "run"))
    with pytest.raises(UsageError, match=r"before_evaluated.npz"):
        Evaluation.load(here / "run" / "before_evaluated.npz")


def test_damaged_figures_of_before_are_made_again(run, here):
    """They are a function of seed and model; a resumed run says which file it was, and which lines of its metrics."""
    folder = copied(run, here / "run")
    whole = dict(np.load(folder / "before_evaluated.npz"))
    text("before_evaluated.npz", b"PK")(folder)
    text("metrics.jsonl", '{"step": 1, "loss": \n\x00garbage')(folder)
    ended = command("train", f"resume={folder}", "training.steps=2")
    assert ended.code == 0, ended
    assert re.search(r"before_evaluated.npz is damaged .*: made again", ended.err)
    assert "metrics.jsonl lacks step 1" in ended.err
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [2]
    again = dict(np.load(folder / "before_evaluated.npz"))
    for name, values in whole.items():
        assert np.array_equal(again[name], values, equal_nan=values.dtype.kind == "f"), name


def test_a_package_in_the_working_folder_is_not_imported(here):
    """Only what the command line names may be: not what a group's `${package:...}` could."""
    (here / "evil").mkdir()
    (here / "evil" / "__init__.py").write_text("open('ran', 'w')")
    ended = command("generate", "prompt=a red circle", "+model.scorers.x=${package:evil.sub}")
    assert ended.code == 2
    assert "package:evil.sub must begin with textcraftor" in ended.line
    assert not (here / "ran").exists()


@pytest.mark.parametrize("kind", ["huge", "program", "cut short"])
def test_pictures_to_score_that_cannot_be_meant(here, kind):
    """A header that asks for gigabytes, a format that starts a program, and half a file."""
    (here / "pictures").mkdir()
    file = here / "pictures" / "a.png"
    Image.new("RGB", (64, 64), "red").save(file)
    whole = file.read_bytes()
    header = whole[12:16] + struct.pack(">II", 40_000, 40_000) + whole[24:29]
    file.write_bytes(
        {
            "program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch ran) system\n",
            "huge": whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:],
            "cut short": whole[: len(whole) // 2],
        }[kind]
    )
    (here / "p.txt").write_text("a red circle\n")
    ended = command("score", "images=pictures", "prompts.path=p.txt", "rewards=aesthetic", f"run_dir={here / 'out'}")
    assert ended.code == 2, ended
    assert "a.png" in ended.line
    assert not (here / "out").exists()
