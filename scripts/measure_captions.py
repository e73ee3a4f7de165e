"""What captions do to a UNet on the toybox: `python scripts/measure_captions.py`.

Three miniatures, five seeds each: UNets tuned on captions as found and on descriptive ones (--shares for more of
them), with and without letter data, and beside a text encoder tuned by reward; and reward tuning from real pictures
beside that from noise. What is finished is kept: the script can be interrupted at any time, and parts of it asked for
alone (--only kinds letters both direct).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from study import BRIEF, PICTURES, SCHEME, Measures, Study
from toybox_records import write_records

from textcraftor.cli import call
from textcraftor.data.records import Records

TUNE = ("tune-captions", "training.steps=600", "watch.every=600", *BRIEF)
SHOWN = ("clip", "judge/faithfulness", "judge/letters", "judge/taste", "pickscore", "imagereward", "total")
FOUND, BEST, LETTERS = 0, 95, "letters_p"  # shares of descriptive captions, and the name of runs with letter data


def make_data(folder: Path) -> dict[str, Path]:
    """Captioned pictures, letter data, and prompts of held-out scenes in both kinds of caption."""
    places = {name: folder / "data" / name for name in ("world", "letters", "held_out")}
    for name, seed, split, count in (("world", 71, "train", 6000), ("held_out", 72, "validation", 64)):
        if not (places[name] / "metadata.jsonl").exists():
            write_records(places[name], count, seed, split)
    if not (places["letters"] / "metadata.jsonl").exists():
        call("letters", ["count=1400", f"run_dir={places['letters']}"])
    records = Records.read(places["held_out"]).records
    for kind in ("found", "descriptive"):
        texts = [one.caption if kind == "found" else one.synthetic[kind][0] for one in records]
        (places["held_out"] / f"{kind}.txt").write_text("\n".join(texts) + "\n")
    return places


def study_of(folder: Path, shares: list[int]) -> Study:
    places = make_data(folder)
    data, letters = f"data.path={places['world']}", f"data.letters.path={places['letters']}"
    runs = {f"p{share}": (*TUNE, data, f"captions.p={share / 100}") for share in shares}
    runs |= {f"{LETTERS}{share}": (*runs[f"p{share}"], letters) for share in (FOUND, BEST)}
    runs |= {"reward": ("train", SCHEME, *BRIEF)}
    runs |= {"direct": (*runs["reward"], "gradient=direct", data, "captions.p=1", "captions.kind=short")}
    prompts = {kind: (f"prompts.path={places['held_out'] / kind}.txt",) for kind in ("found", "descriptive")}
    root = Path("textcraftor/toybox/prompts")
    prompts |= {
        "": (),
        "seen": (f"prompts.path={root}/words.txt",),
        "unseen": (f"prompts.path={root}/unseen_words.txt",),
    }
    return Study(folder, runs, PICTURES, SHOWN, prompts)


def kinds(study: Study) -> None:
    """UNets tuned on both kinds of caption, on prompts of both kinds; those as found hardly ever name a word."""
    names = [name for name in study.runs if name.startswith("p")]
    for prompts, what in (("found", "as found"), ("descriptive", "descriptive")):
        rows = {f"{name[1:]} %": study.several(name, {"denoiser.path": name}, prompts=prompts) for name in names}
        print(f"Prompts {what}; share of descriptive captions in training; differences from the base:\n")
        shown = [name for name in SHOWN if prompts == "descriptive" or name != "judge/letters"]
        study.table(rows, study.base(prompts), shown)
        first, last = rows[f"{names[0][1:]} %"], rows[f"{names[-1][1:]} %"]
        print(f"The same; from {names[0][1:]} % to {names[-1][1:]} %:\n")
        study.table({"difference": last}, first, shown)


def letters(study: Study) -> None:
    """With and without letter data, words that training shows and words that it never shows."""
    shown = ("judge/letters", "judge/faithfulness")
    for prompts in ("seen", "unseen"):
        rows, gains = dict[str, Measures](), dict[str, tuple[Measures, Measures]]()
        for share, captions in ((FOUND, "as found"), (BEST, f"{BEST} % descriptive")):
            names = f"p{share}", f"{LETTERS}{share}"
            sides = [study.several(name, {"denoiser.path": name}, prompts=prompts) for name in names]
            rows |= {
                f"captions {captions}, {data} % letter data": side for data, side in zip((0, 19), sides, strict=True)
            }
            gains[captions] = (sides[0], sides[1])
        mean = np.nanmean(study.base(prompts)["judge/letters"])
        print(f"Words {prompts} (the base writes {mean:.3f} of the letters); differences from the base:\n")
        study.table(rows, study.base(prompts), shown)
        for captions, (without, with_letters) in gains.items():
            print(f"The same; captions {captions}, from 0 to 19 % letter data:\n")
            study.table({"difference": with_letters}, without, shown)


def both(study: Study) -> None:
    """A caption-tuned UNet, a reward-tuned encoder, and both together: do the gains add up?"""
    encoder, unet = {"tuned.a": "reward"}, {"denoiser.path": f"p{BEST}"}
    rows = {
        "caption-tuned UNet": study.several(f"p{BEST}", unet),
        "reward-tuned encoder": study.several("reward", encoder),
        "both": study.several("both", encoder | unet),
    }
    print("Differences from the base:\n")
    study.table(rows, study.base())
    one, other = rows["caption-tuned UNet"], rows["reward-tuned encoder"]
    base = study.base()
    added = {name: one[name] + other[name] - base[name] for name in one}
    print("Both together, from the sum of the two gains:\n")
    study.table({"difference": rows["both"]}, added)


def direct(study: Study) -> None:
    """Reward tuning from real pictures, noised, in one jump: the paper's first variant."""
    rows = {
        "from pictures (direct)": study.several("direct", {"tuned.a": "direct"}),
        "from noise (last_k)": study.several("reward", {"tuned.a": "reward"}),
    }
    print("Reward tuning; differences from the base:\n")
    study.table(rows, study.base())


PARTS = {"kinds": kinds, "letters": letters, "both": both, "direct": direct}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/captions"))
    parser.add_argument("--shares", nargs="*", type=int, default=[0, 95], help="of descriptive captions, in percent")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    arguments = parser.parse_args()
    study = study_of(arguments.folder, sorted({*arguments.shares, FOUND, BEST}))
    for part in arguments.only:
        PARTS[part](study)


if __name__ == "__main__":
    main()
