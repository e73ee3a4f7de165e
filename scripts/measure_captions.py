"""What captions do to a UNet on the toybox: `python scripts/measure_captions.py`.

Three miniatures, five seeds each: UNets tuned on captions as found and on descriptive ones (--shares for more of
them), with and without letter data, and beside a text encoder tuned by reward; and reward tuning from real pictures
beside that from noise. What is finished is kept: the script can be interrupted at any time, and parts of it asked for
alone (--only kinds letters both direct).
"""

from __future__ import annotations

from pathlib import Path

from results import new_parser
from study import BRIEF, PICTURES, SCHEME, Measures, Study, against

from textcraftor.cli import call
from textcraftor.data.records import Records
from textcraftor.toybox.world2.records import write_records

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


def study_of(folder: Path, shares: list[int], store: bool) -> Study:
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
    return Study(folder, runs, PICTURES, SHOWN, "captions", store, prompts)


def kinds(study: Study) -> None:
    """UNets tuned on both kinds of caption, on prompts of both kinds; those as found hardly ever name a word."""
    names = [name for name in study.runs if name.startswith("p")]
    for prompts, title in (("found", "prompts as found"), ("descriptive", "descriptive prompts")):
        found = {f"{name[1:]} %": study.several(name, {"denoiser.path": name}, prompts=prompts) for name in names}
        (first, of_first), *_, (last, of_last) = found.items()
        rows = against(study.base(prompts), found) | {f"{last} against {first}": (of_first, of_last)}
        study.table(title, rows, [name for name in SHOWN if prompts == "descriptive" or name != "judge/letters"])


def letters(study: Study) -> None:
    """With and without letter data, words that training shows and words that it never shows."""
    for prompts, title in (("seen", "letters, words that training shows"), ("unseen", "letters, unseen words")):
        rows, gains = dict[str, tuple[Measures, Measures]](), dict[str, tuple[Measures, Measures]]()
        for share, captions in ((FOUND, "as found"), (BEST, f"{BEST} % descriptive")):
            names = f"p{share}", f"{LETTERS}{share}"
            without, also = (study.several(name, {"denoiser.path": name}, prompts=prompts) for name in names)
            found = {"0 % letter data": without, "19 % letter data": also}
            rows |= against(study.base(prompts), {f"captions {captions}, {data}": one for data, one in found.items()})
            gains[f"captions {captions}, 19 % against 0 %"] = (without, also)
        study.table(title, rows | gains, ("judge/letters", "judge/faithfulness"))


def both(study: Study) -> None:
    """A caption-tuned UNet, a reward-tuned encoder, and both together: do the gains add up?"""
    encoder, unet = {"tuned.a": "reward"}, {"denoiser.path": f"p{BEST}"}
    base = study.base()
    found = {
        "caption-tuned UNet": study.several(f"p{BEST}", unet),
        "reward-tuned encoder": study.several("reward", encoder),
        "both": study.several("both", encoder | unet),
    }
    one, other = found["caption-tuned UNet"], found["reward-tuned encoder"]
    added = {name: one[name] + other[name] - base[name] for name in one}
    study.table("both", against(base, found) | {"both, against the sum of the two gains": (added, found["both"])})


def direct(study: Study) -> None:
    """Reward tuning from real pictures, noised, in one jump: the paper's first variant."""
    found = {
        "from pictures (direct)": study.several("direct", {"tuned.a": "direct"}),
        "from noise (last_k)": study.several("reward", {"tuned.a": "reward"}),
    }
    study.table("direct", against(study.base(), found))


PARTS = {"kinds": kinds, "letters": letters, "both": both, "direct": direct}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/captions"))
    parser.add_argument("--shares", nargs="*", type=int, default=[0, 95], help="of descriptive captions, in percent")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    arguments = parser.parse_args()
    study = study_of(arguments.folder, sorted({*arguments.shares, FOUND, BEST}), arguments.store)
    for part in arguments.only:
        PARTS[part](study)


if __name__ == "__main__":
    main()
