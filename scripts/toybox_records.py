"""Captioned pictures of the toybox's world: `python scripts/toybox_records.py data/world`."""

from __future__ import annotations

import argparse
from pathlib import Path

from textcraftor.toybox.world2.records import write_records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=71)
    parser.add_argument("--words", type=float, default=0.5, help="share of scenes with a word")
    arguments = parser.parse_args()
    write_records(arguments.folder, arguments.count, arguments.seed, word_probability=arguments.words)


if __name__ == "__main__":
    main()
