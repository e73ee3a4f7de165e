"""Check that exported files load elsewhere: `python scripts/check_export.py RUN [RUN ...]`, on transformers 4 and 5.

Exports each run in every format, loads the files by stock loaders here (transformers 5) and in an environment of its
own with transformers 4.55, and compares the embeddings of some prompts with those of the model that TextCraftor loads
itself: 1e-6 for whole encoders, 1e-5 for adapters, whose sums are rounded in another order once they are merged. Exit
code 1 where one differs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

PROMPTS = ["a red circle and a blue star", 'a small green square with the word "KKQ"', ""]
PACKAGES = {"transformers4": ("transformers==4.55.4", "diffusers==0.35.2", "peft==0.17.1", "accelerate==1.10.1")}
WHOLE, ADAPTERS = 1e-6, 1e-5  # the largest difference allowed


def load(folder: Path, base: Path, out: Path) -> None:
    """Embed the prompts by every file of an exported folder that holds a text encoder, by stock loaders alone."""
    import numpy as np
    import torch
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import load_file
    from transformers import CLIPTextModel, CLIPTokenizer

    def pipeline(path: Path):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "pipeline" / "tokenizer")
        return StableDiffusionPipeline.from_pretrained(
            path, tokenizer=tokenizer, safety_checker=None, requires_safety_checker=False
        )

    def embed(pipe, encoder) -> np.ndarray:
        tokens = pipe.tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            return encoder.eval()(tokens).last_hidden_state.numpy()

    pipe, found = pipeline(base), {}
    if (folder / "text_encoder").exists():
        encoder, info = CLIPTextModel.from_pretrained(folder / "text_encoder", output_loading_info=True)
        assert not info["missing_keys"], info
        found["text_encoder"] = embed(pipe, encoder)
    bare = CLIPTextModel(pipe.text_encoder.config)
    names = {key if key.startswith("text_model.") else f"text_model.{key}": key for key in bare.state_dict()}
    state = {names[key]: value for key, value in load_file(folder / "text_encoder.safetensors").items()}
    lost = bare.load_state_dict(state, strict=False).missing_keys
    assert all("position_ids" in key for key in lost), lost
    found["text_encoder.safetensors"] = embed(pipe, bare)
    whole = pipeline(folder / "pipeline")
    found["pipeline"] = embed(whole, whole.text_encoder)
    if (folder / "lora.safetensors").exists():
        pipe.load_lora_weights(folder, weight_name="lora.safetensors")
        found["lora.safetensors"] = embed(pipe, pipe.text_encoder)
    np.savez(out, **found)


def environment(work: Path) -> Path:
    """An interpreter with transformers 4.55, made the first time."""
    from parity.environments import COMMON, TORCH, pip

    folder = work / "environments" / "transformers4"
    interpreter = folder / "bin" / "python"
    if not (folder / "finished").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip(interpreter, "install", TORCH)
        pip(interpreter, "install", *COMMON, *PACKAGES["transformers4"])
        (folder / "finished").touch()
    return interpreter


def check(run: Path, work: Path) -> bool:
    """Export a run, load it both ways, print a row for each file; whether all are close enough."""
    import numpy as np
    import torch

    from textcraftor.cli import compose, register
    from textcraftor.inference import export, formats
    from textcraftor.inference.mix import Mix
    from textcraftor.models.loading import load_model

    register()
    folder = work / "exported" / run.name
    shutil.rmtree(folder, ignore_errors=True)
    adapters = formats.lora_folders(Mix({"a": run}))
    formats, limit = "diffusers,webui,pipeline" + (",kohya" if adapters else ""), ADAPTERS if adapters else WHOLE
    config = compose("export", [f"tuned.a={run}", f"formats=[{formats}]", f"run_dir={folder}"])
    export.run(config, folder)
    model = load_model(config)
    Mix({"a": run}).schedule(model)
    with torch.no_grad():
        wanted = model.encode(PROMPTS, None, "a").prompt.mixed["encoder_hidden_states"].numpy()
    good = True
    for name, interpreter in (("transformers 5", Path(sys.executable)), ("transformers 4.55", environment(work))):
        out = work / "exported" / f"{run.name}.npz"
        command = [interpreter, __file__, "--load", folder, config.model.path, out]
        subprocess.run(list(map(str, command)), check=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
        with np.load(out) as found:
            for file in found:
                difference = float(np.abs(found[file] - wanted).max())
                good &= difference <= limit
                verdict = "ok" if difference <= limit else "FAILS"
                print(f"| {run.name} | {name} | {file} | {difference:.1e} | {verdict} |", flush=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--load", nargs=3, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, default=Path(".parity").resolve())
    arguments = parser.parse_args()
    if arguments.load:
        load(*arguments.load)
        return
    print("| run | loaded by | file | largest difference | |\n| --- | --- | --- | --- | --- |")
    good = [check(run, arguments.work) for run in arguments.runs]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
