"""Check that our scorers equal the published ones, each run by its own package in an environment of its own.

    .venv/bin/python scripts/check_parity.py                  # a table, a row per scorer and check; 1 if one fails
    .venv/bin/python scripts/check_parity.py --only HPSv2     # one scorer
    .venv/bin/python scripts/check_parity.py --prove          # faults on our side must be noticed
    .venv/bin/python scripts/check_parity.py --golden         # writes tests/rewards/golden.json
    .venv/bin/python scripts/check_parity.py --golden --store # ... and the table of toy-size scorers

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from parity import environments, faults, golden, ours, pictures
from parity.cases import Case, all_cases
from results import new_parser, show

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
SAME, GRADIENTS, HALF = 3, 2, 3  # pictures that each costly check looks at
FEATURES, PIXELS, SCORE, GRADIENT = 1e-5, 2.0, 1e-3, 1e-3  # what is allowed, see `checks`

# The columns of the stored table: how the checks' names begin, and what they are called there.
BEGINS = (
    (("same pixels: image", "same pixels: text"), "features"),
    ("same pixels: score", "same pixels: score, relative"),
    ("same pixels: pixel gradient", "pixel gradient, relative"),
    ("same file: pixels", "same file: pixels, of 255"),
    ("same file: score", "score"),
    ("tokens", "prompts that differ"),
    ("bfloat16", "bfloat16"),
)
SHOWN = ["scorer", "compared with", *((name, ".2g") for _, name in BEGINS)]

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
    found, pixels = ours.answer(case.load(), job, SAME, GRADIENTS, HALF)
    gc.collect()  # our model, before the original takes as much
    np.savez(folder / "pixels.npz", *pixels)
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


def same_pictures(case: Case, mine: Answers, theirs: Answers) -> Iterator[Check]:
    """(b): everything, from the same files and prompts. Looks at as many pictures as we scored."""
    name = case.name
    count, ours_ = len(mine["own_score"]), mine["own_pixels"].ravel()
    difference = 255 * case.std * np.abs(ours_ - theirs["own_pixels"].ravel()[: len(ours_)])
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


def checks(case: Case, mine: Answers, theirs: Answers) -> list[Check]:
    return [*same_pixels(case.name, mine, theirs), *same_pictures(case, mine, theirs)]


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
                answers, _ = ours.answer(scorer, few, same, 0, 0)
                noticed.append((fault, [c.what for c in checks(case, answers, reference) if c.failed]))
    return noticed


def show_proof(name: str, noticed: list[tuple[faults.Fault, list[str]]]) -> int:
    """Print what each fault fails; how many went unnoticed by the check that is there for them."""
    unnoticed = 0
    for fault, failed in noticed:
        missed = not any(what.startswith(fault.noticed_by) for what in failed)
        print(f"| {name} | {fault.name} | {'; '.join(failed)}{' **unnoticed**' if missed else ''} |", flush=True)
        unnoticed += missed
    return unnoticed


def figures(case: Case, own: list[Check]) -> list[str | float | None]:
    """A row of `SHOWN`: the largest of the checks whose names begin so, a dash where there is none."""
    row: list[str | float | None] = [case.name, case.published]
    for begin, _ in BEGINS:
        values = [check.measured for check in own if check.what.startswith(begin)]
        row.append(max(values) if values else "-")
    return row


def chosen(cases: list[Case], only: Sequence[str] | None) -> list[Case]:
    """Those whose name begins so; all without a choice."""
    return [case for case in cases if not only or any(case.name.startswith(name) for name in only)]


def write_golden(work: Path, file: Path, only: Sequence[str] | None, store: bool) -> int:
    """The golden figures, those of other scorers kept, and the same table for the toy-size scorers."""
    job, answers, rows = golden.prepare(work / "tiny"), {}, list[tuple[Case, list[Check]]]()
    cases = chosen(golden.cases(work / "tiny", str(work / "sources" / "MPS")), only)
    environments.build_all(work, {case.environment for case in cases})
    for case in cases:
        if "weights" in case.job:
            run_reference(work, case, {"make": True})
        mine, answers[case.name] = compare(work / "tiny", case, job, work)
        rows.append((case, checks(case, mine, answers[case.name])))
        print("\n".join(check.row() for check in rows[-1][1]), flush=True)
    golden.write(file, answers)
    show("parity", "toy size", SHOWN, [figures(case, own) for case, own in rows], store, device="1 CPU core")
    wrong = sum(check.failed for _, own in rows for check in own)
    print(f"\n{wrong} checks failed")
    return int(wrong > 0)


def arguments() -> argparse.Namespace:
    parser = new_parser(__doc__)
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
    if options.golden:
        return write_golden(work, ROOT / "tests" / "rewards" / "golden.json", options.only, options.store)
    cases, job, wrong = chosen(all_cases(work, SHARED / "weights"), options.only), the_job(work), 0
    environments.build_all(work, {case.environment for case in cases})
    environments.write_tokenizers(work)
    print("| scorer | fault | checks that fail |" if options.prove else "| scorer | check | measured | limit | |")
    print("| --- | --- | --- |" if options.prove else "| --- | --- | --- | --- | --- |", flush=True)
    for case in cases:
        make_weights(work, case)
        start = time.perf_counter()
        if options.prove:
            wrong += show_proof(case.name, prove(case, job, stored(work, case, job)))
        else:
            rows = checks(case, *compare(work, case, job, work))
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
