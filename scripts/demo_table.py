"""The README's tables of the demo: `python scripts/demo_table.py runs/demo [MORE RUNS ...] --store`.

The first run's own table, and that of all runs together, which differ in their training seed:

    textcraftor train -m seed=0,1,2,3,4
"""

from __future__ import annotations

import json
from pathlib import Path

from results import new_parser, show
from study import NOTE, cell, measures_of_runs

DEMO = {  # what the README shows of the demo
    "total": "trained total",
    "aesthetic": "aesthetic",
    "hpsv2": "HPSv2 layout",
    "clip": "CLIP constraint",
    "pickscore": "PickScore layout, held out of training",
    "judge/taste": "judge: taste",
    "judge/faithfulness": "judge: faithfulness",
    "judge/letters": "judge: letters",
    "judge/read": "published reader: letters",
    "diversity": "diversity over seeds",
}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    arguments = parser.parse_args()
    summaries = [json.loads((run / "summary.json").read_text()) for run in arguments.runs]
    first, rows = summaries[0], []
    for measure, name in DEMO.items():
        change = first["difference"][measure]
        values = [side.get(measure) for side in (first["before"], first["best_before"], first["after"])]
        rows.append([name, *values, {key: change[key] for key in ("mean", "low", "high")}, change["n"]])
    sides = (("before", ".3f"), (f"best of {len(first['seeds'])} before", ".3f"), ("after", ".3f"))
    columns = ["measure", *sides, ("difference, 95 % interval over prompts", "+.3f"), "n"]
    show("demo", "demo", columns, rows, arguments.store)
    if len(summaries) > 1:
        before, after = measures_of_runs(summaries)
        rows = [[name, cell(before[measure], after[measure])] for measure, name in DEMO.items()]
        columns = ["measure", (f"difference, {len(summaries)} training seeds", "+.3f")]
        show("demo", "seeds", columns, rows, arguments.store, training_seeds=len(summaries))
        print(NOTE)


if __name__ == "__main__":
    main()
