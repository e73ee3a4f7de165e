"""Check that our scorers equal the published ones, each run by its own package in an environment of its own.

    .venv/bin/python scripts/check_parity.py                  # a table, a row per scorer and check; 1 if one fails
    .venv/bin/python scripts/check_parity.py --only HPSv2     # one scorer
    .venv/bin/python scripts/check_parity.py --prove          # faults on our side must be noticed
    .venv/bin/python scripts/check_parity.py --golden         # writes tests/rewards/golden.json

The architectures are the published ones at full size, the weights random with a fixed seed: no download of models. It
installs the packages under `--work` the first time, takes about 20 GB of disk there, 10 GB of memory and half an hour.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from parity import environments, faults, golden, ours, pictures
from parity.cases import Case, all_cases
from transformers.image_utils import OPENAI_CLIP_STD

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
SAME, GRADIENTS, HALF = 3, 2, 3  # pictures that each costly check looks at
FEATURES, PIXELS, SCORE, GRADIENT = 1e-5, 2.0, 1e-3, 1e-3  # what is allowed, see `checks`

Answers = dict[str, np.ndarray]


@dataclass(frozen=True)
class Check:
    """One row of the table; without a limit it only informs."""

    scorer: str
    what: str
    measured: float
    limit: float | None = None

    @property
    def failed(self) -> bool:
        return self.limit is not None and not self.measured <= self.limit

    def row(self) -> str:
        limit = "" if self.limit is None else f"{self.limit:g}"
        verdict = "" if self.limit is None else ("**FAILS**" if self.failed else "ok")
        return f"| {self.scorer} | {self.what} | {self.measured:.3g} | {limit} | {verdict} |"


def run_reference(work: Path, case: Case, job: dict) -> None:
    """Start a reference runner in its environment and wait for it."""
    file = work / "jobs" / f"{case.runner}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(case.job | job))
    variables = os.environ | {"PYTHONPATH": str(ROOT / "scripts"), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    interpreter = environments.python(work, case.environment)
    command = [interpreter, "-m", f"parity.{case.runner}", file]
    ended = subprocess.run(command, env=variables, cwd=work, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{case.name}: the reference runner failed\n{ended.stdout}{ended.stderr}")


def make_weights(work: Path, case: Case) -> None:
    """The random checkpoint, unless it is there. A mark is set when it is whole."""
    mark = case.weights().with_name(case.weights().name + ".done")
    if mark.exists():
        return
    print(f"{case.name}: writing random weights", flush=True)
    case.weights().parent.mkdir(parents=True, exist_ok=True)
    if case.prepare:
        case.prepare()
    run_reference(work, case, {"make": True})
    mark.touch()


def compare(folder: Path, case: Case, job: dict, work: Path) -> tuple[Answers, Answers]:
    """Our answers and the original's; the original is also given our pixels. Both are kept in `folder`."""
    folder = folder / "answers" / case.name.replace("/", "").replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    found = ours.answer(case.load(), job, SAME, GRADIENTS, HALF)
    gc.collect()  # our model, before the original takes as much
    np.savez(folder / "pixels.npz", pixels=found["own_pixels"][:SAME])
    np.savez(folder / "ours.npz", **found)
    paths = {"pixels": str(folder / "pixels.npz"), "out": str(folder / "theirs.npz")}
    run_reference(work, case, job | paths | {"gradients": GRADIENTS})
    return found, dict(np.load(folder / "theirs.npz"))


def largest(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference; infinite where the shapes already differ."""
    return float(np.abs(mine - theirs).max()) if mine.shape == theirs.shape else float("inf")


def same_pixels(name: str, mine: Answers, theirs: Answers) -> Iterator[Check]:
    """(a) and (c): the model itself, from the same preprocessed pictures."""
    for key in ("image_features", "text_features"):
        source = key if key == "text_features" else f"same_{key}"
        if source in mine and source in theirs:
            yield Check(name, f"same pixels: {key.replace('_', ' ')}", largest(mine[source], theirs[source]), FEATURES)
    if "same_score" in mine:
        error = largest(mine["same_score"], theirs["same_score"]) / np.abs(theirs["same_score"]).max()
        yield Check(name, "same pixels: score, relative", error, FEATURES)
    if "gradients" in mine:
        difference = np.linalg.norm(mine["gradients"] - theirs["gradients"])
        relative = float(difference / np.linalg.norm(theirs["gradients"]))
        yield Check(name, "same pixels: pixel gradient, relative", relative, GRADIENT)


def same_pictures(name: str, mine: Answers, theirs: Answers) -> Iterator[Check]:
    """(b): everything, from the same files and prompts. Looks at as many pictures as we scored."""
    count = len(mine["own_pixels"])
    levels = 255 * np.array(OPENAI_CLIP_STD, dtype=np.float32)[:, None, None]
    difference = np.abs(mine["own_pixels"] - theirs["own_pixels"][:count]) * levels
    yield Check(name, "same file: pixels, of 255", float(difference.max()), PIXELS)
    yield Check(name, "same file: pixels, of 255, mean", float(difference.mean()))
    spread = float(theirs["own_score"].std())
    error = largest(mine["own_score"], theirs["own_score"][:count])
    yield Check(name, f"same file: score, of its sd {spread:.2g}", error / spread, SCORE)
    for key in ("tokens_ids", "tokens_mask"):
        if key in mine and key in theirs:
            equal = mine[key].shape == theirs[key].shape
            wrong = (mine[key] != theirs[key]).any(1).sum() if equal else len(mine[key])
            yield Check(name, f"{key.replace('_', ' ')}: prompts of {len(mine[key])} that differ", float(wrong), 0)
    if "half_score" in mine:
        error = largest(mine["half_score"], mine["own_score"][: len(mine["half_score"])])
        yield Check(name, "bfloat16 score, of its sd", error / spread)


def checks(name: str, mine: Answers, theirs: Answers) -> list[Check]:
    return [*same_pixels(name, mine, theirs), *same_pictures(name, mine, theirs)]


def prove(case: Case, job: dict, theirs: Answers) -> list[tuple[faults.Fault, list[str]]]:
    """The checks that notice each fault, on the first pictures."""
    few = job | {"pictures": job["pictures"][:SAME], "prompts": job["prompts"][:SAME]}
    few["token_prompts"] = job["token_prompts"][: len(pictures.TOKEN_PROMPTS)]
    reference = {key: value[: len(few["token_prompts"])] if "tokens" in key else value for key, value in theirs.items()}
    reference |= {key: value[:SAME] for key, value in theirs.items() if key == "text_features"}
    scorer, noticed = case.load(), []
    for fault in faults.FAULTS:
        with fault.inject(scorer) as applies:
            if applies:
                same = SAME if fault.changes_model else 0
                answers = ours.answer(scorer, few, same, 0, 0)
                noticed.append((fault, [c.what for c in checks(case.name, answers, reference) if c.failed]))
    return noticed


def show_proof(name: str, noticed: list[tuple[faults.Fault, list[str]]]) -> int:
    """Print what each fault fails; how many went unnoticed by the check that is there for them."""
    unnoticed = 0
    for fault, failed in noticed:
        missed = not any(what.startswith(fault.noticed_by) for what in failed)
        print(f"| {name} | {fault.name} | {'; '.join(failed)}{' **unnoticed**' if missed else ''} |", flush=True)
        unnoticed += missed
    return unnoticed


def write_golden(work: Path, file: Path) -> int:
    """The golden figures, and the same table for the toy-size scorers."""
    job, answers, wrong = golden.prepare(work / "tiny"), {}, 0
    for case in golden.cases(work / "tiny"):
        if "folder" in case.job:
            run_reference(work, case, {"make": True})
        mine, answers[case.name] = compare(work / "tiny", case, job, work)
        rows = checks(case.name, mine, answers[case.name])
        print("\n".join(check.row() for check in rows), flush=True)
        wrong += sum(check.failed for check in rows)
    golden.write(file, answers)
    print(f"\n{wrong} checks failed")
    return int(wrong > 0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / ".parity", help="environments, weights and answers")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="scorers whose name begins so")
    parser.add_argument("--prove", action="store_true", help="show that faults on our side are noticed")
    parser.add_argument("--golden", action="store_true", help="write the figures that the tests compare with")
    return parser.parse_args()


def the_job(work: Path) -> dict:
    token_prompts = [*pictures.TOKEN_PROMPTS, *pictures.parti_prompts(SHARED / "prompts" / "parti_prompts.tsv")]
    paths = pictures.write(work / "pictures", pictures.draw())
    return {"pictures": paths, "prompts": list(pictures.PROMPTS), "token_prompts": token_prompts}


def main() -> int:
    options = arguments()
    work = options.work.resolve()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    environments.build_all(work)
    if options.golden:
        return write_golden(work, ROOT / "tests" / "rewards" / "golden.json")
    cases, job, wrong = all_cases(work, SHARED / "weights"), the_job(work), 0
    print("| scorer | fault | checks that fail |" if options.prove else "| scorer | check | measured | limit | |")
    print("| --- | --- | --- |" if options.prove else "| --- | --- | --- | --- | --- |", flush=True)
    for case in cases:
        make_weights(work, case)
        if options.only and not any(case.name.startswith(name) for name in options.only):
            continue
        start = time.perf_counter()
        if options.prove:
            wrong += show_proof(case.name, prove(case, job, stored(work, case, job)))
        else:
            rows = checks(case.name, *compare(work, case, job, work))
            print("\n".join(check.row() for check in rows), flush=True)
            wrong += sum(check.failed for check in rows)
        print(f"{case.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print(f"\n{wrong} {'faults went unnoticed' if options.prove else 'checks failed'}")
    return int(wrong > 0)


def stored(work: Path, case: Case, job: dict) -> Answers:
    """The original's answers of an earlier run, or of one now."""
    file = work / "answers" / case.name.replace("/", "").replace(" ", "_") / "theirs.npz"
    return dict(np.load(file)) if file.exists() else compare(work, case, job, work)[1]


if __name__ == "__main__":
    sys.exit(main())
