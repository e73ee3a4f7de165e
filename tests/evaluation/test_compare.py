"""Many runs beside each other: the table's figures are the summaries', and the Pareto front is the right one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from textcraftor.cli import paths_as_list
from textcraftor.errors import UsageError
from textcraftor.evaluation.compare import check, pareto_front, run


def summary(total: float, held_out: float) -> str:
    change = {
        name: {"mean": value, "low": value - 0.1, "high": value + 0.1, "n": 48} for name, value in (("total", total),)
    }
    costs = {"held_out": held_out, "seconds": {"tuning": 12.0}, "peak_memory_gb": 1.5, "steps": 60}
    return json.dumps({"difference": change, **costs})


def test_the_front_holds_the_runs_that_no_other_beats():
    points = np.array([[1.0, 3.0], [2.0, 2.0], [1.5, 1.5], [3.0, 1.0], [3.0, 1.0], [0.5, 3.0]])
    assert pareto_front(points).tolist() == [True, True, False, True, True, False]


def test_the_table_holds_the_summaries_figures(configure, tmp_path):
    for name, figures in {"x/a": (1.0, 0.5), "y/a": (0.4, 0.9)}.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "summary.json").write_text(summary(*figures))
    overrides = paths_as_list("compare", [str(tmp_path / "x" / "a"), str(tmp_path / "y" / "a"), "name=c"])
    config = configure("compare", *overrides)
    said = run(config, tmp_path / "out")
    assert "| x/a | 0.5 | 60 | 12 | 1.5 | +1.000 [+0.900, +1.100], n 48 |" in said
    assert "95 % intervals over n prompts, each of one run" in said
    assert (tmp_path / "out" / "table.md").read_text().strip() in said
    assert (tmp_path / "out" / "pareto.png").stat().st_size > 1000
    one_prompt = json.loads(summary(0.7, 0.1))
    one_prompt["difference"]["total"] |= {"low": None, "high": None, "n": 1}
    (tmp_path / "x" / "a" / "summary.json").write_text(json.dumps(one_prompt))
    assert "| x/a | 0.1 | 60 | 12 | 1.5 | +0.700 none, n 1 |" in run(config, tmp_path / "again")
    del one_prompt["difference"]["total"]["n"]  # as runs of old wrote it
    (tmp_path / "x" / "a" / "summary.json").write_text(json.dumps(one_prompt))
    assert "| x/a | 0.1 | 60 | 12 | 1.5 | +0.700 none |" in run(config, tmp_path / "old")
    with pytest.raises(UsageError, match="no measure brightness in a run; there are held_out, seconds"):
        check(configure("compare", *overrides, "x=brightness"), tmp_path / "other")
