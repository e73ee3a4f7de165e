"""The toybox's own captioner, trained and graded: `python scripts/toybox_captioner.py`.

A small language model that knows nothing yet learns the world's captions through `textcraftor train-captioner`: a base
on captions as found, then one fine-tune each for short and for descriptive captions. `textcraftor recaption` captions
held-out pictures with all three, and the world's truth grades them: of the facts that a caption states, how many are
true (precision); of those that its kind should state, how many it states (recall).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from results import new_parser, show
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from textcraftor.data.records import Record, Records
from textcraftor.toybox.world2.records import write_records
from textcraftor.toybox.world2.wanted import parse

WEIGHTS = Path("textcraftor/toybox/world2/weights")
STAGES = {"base": (None, 4000, 1e-3), "short": ("short", 1500, 3e-4), "descriptive": ("descriptive", 1500, 3e-4)}


def new_language_model(folder: Path, captions: list[str]) -> None:
    """GPT-2, small and untrained, with byte pairs of the world's captions."""
    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator(captions, vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    folder.mkdir(parents=True)
    pairs.save(str(folder / "tokenizer.json"))
    tokenizer = GPT2TokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.save_pretrained(folder)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=96, n_embd=192, n_layer=4, n_head=6, **ends)
    GPT2LMHeadModel(config).save_pretrained(folder)


def facts(caption: str) -> set[tuple[str, ...]]:
    """What a caption states, as the world's grammar reads it."""
    wanted = parse(caption)
    found: set[tuple[str, ...]] = set()
    for shape in wanted.shapes:
        found.add(("shape", shape.color, shape.shape))
        found |= {("size", shape.color, shape.size)} if shape.size else set()
        found |= {("place", shape.color, shape.place)} if shape.place else set()
    found |= {("ground", wanted.ground)} if wanted.ground else set()
    found |= {("word", wanted.word)} if wanted.word else set()
    return found | ({("row", wanted.row)} if wanted.word and wanted.row else set())


def by_kind(pairs: Sequence[tuple[Record, str]]) -> str:
    """Of the facts of each kind that captions state, how many are true."""
    stated, true = Counter[str](), Counter[str]()
    for record, caption in pairs:
        found = facts(caption)
        stated.update(fact[0] for fact in found)
        true.update(fact[0] for fact in found & facts(record.synthetic["descriptive"][0]))
    return ", ".join(f"{kind} {true[kind] / stated[kind]:.2f}" for kind in stated)


def grade(record: Record, caption: str, kind: str) -> tuple[float, float]:
    """Precision and recall of a caption."""
    stated, true = facts(caption), facts(record.synthetic["descriptive"][0])
    asked = true if kind == "descriptive" else facts(record.synthetic["short"][0])
    precision = len(stated & true) / len(stated) if stated else float("nan")
    return precision, len(stated & asked) / len(asked)


def command(*arguments: str) -> None:
    subprocess.run([str(Path(sys.executable).with_name("textcraftor")), *arguments], check=True)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/captioner"))
    arguments = parser.parse_args()
    folder = arguments.folder
    world, held_out, model = folder / "world", folder / "held_out", folder / "language_model"
    if not (world / "metadata.jsonl").exists():
        write_records(world, 8000, seed=81)
    if not (held_out / "metadata.jsonl").exists():
        write_records(held_out, 300, seed=82, split="validation")
    if not model.exists():
        new_language_model(model, Records.read(world).captions)
    if not (folder / "captioner" / "config.yaml").exists():
        stages = [
            f"stages.{name}.{key}={value}"
            for name, (_, steps, lr) in STAGES.items()
            for key, value in (("steps", steps), ("lr", lr))
        ]
        parts = [f"captioner.clip={WEIGHTS / 'aesthetic_clip'}", f"captioner.language_model={model}"]
        place = f"run_dir={folder / 'captioner'}"
        command("train-captioner", f"data.path={world}", *parts, *stages, place, "batch_size=64")
    columns = ["captioner", "captions", ("precision of stated facts", ".3f"), ("recall", ".3f")]
    rows = []
    records = Records.read(held_out).records
    for name in STAGES:
        place = folder / "captions" / name
        if not (place / "captions.jsonl").exists():
            keys = [f"captioner.path={folder / 'captioner'}", f"style={name}", "batch_size=50"]
            command("recaption", f"data.path={held_out}", *keys, f"run_dir={place}")
        told = {row["key"]: row["text"] for row in map(json.loads, (place / "captions.jsonl").read_text().splitlines())}
        pairs = [(record, told[record.key]) for record in records if record.key in told]
        precision, recall = np.nanmean([grade(record, caption, name) for record, caption in pairs], 0)
        rows.append([name, len(pairs), precision, recall, by_kind(pairs), pairs[0][1]])
    show("captioners", "captioners", [*columns, "precision by kind", "an example"], rows, arguments.store)


if __name__ == "__main__":
    main()
