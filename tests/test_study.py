"""The tables of the measuring scripts: what their intervals are over, and that few training seeds make no claim."""

from __future__ import annotations

import numpy as np
import pytest
from study import NOTE, SEEDS, against, measures_of_runs, show_differences

from textcraftor.evaluation.statistics import LEAST_SEEDS, crossed_difference, interval_text, paired_difference


def figures(seeds: int) -> dict[str, np.ndarray]:
    """Of 10 prompts, four of them without a word."""
    rng = np.random.default_rng(seeds)
    letters = rng.normal(size=(seeds, 10, 2))
    letters[:, :4] = np.nan
    return {"total": rng.normal(size=(seeds, 10, 2)), "letters": letters}


def test_intervals_are_crossed_from_five_training_seeds_on_and_of_one_over_prompts(capsys):
    base, five, one = figures(1), figures(5), figures(1)
    rows = against(base, {"five": five, "three": figures(3), "one": one})
    show_differences("study", "all", rows, ("total", "letters"), store=False)
    title, _, head, _, *rows, _, note, _ = capsys.readouterr().out.split("\n")[:-1]
    assert title == "all"
    assert head == "|  | training seeds | total | letters |"
    crossed = interval_text(crossed_difference(base["letters"], five["letters"]), 3)
    assert rows[0].startswith("| five | 5 | ")
    assert f" {crossed} (" in rows[0]
    assert rows[0].endswith(", n 6 |")
    assert rows[1].count(" none (") == 2
    assert f"{interval_text(paired_difference(base['total'][0], one['total'][0]), 3)}, n 10 |" in rows[2]
    assert note == NOTE
    assert len(SEEDS) >= LEAST_SEEDS


def test_runs_of_several_seeds_are_compared_prompt_by_prompt():
    """None stands for a prompt without a figure, as JSON has it."""
    summaries = [{"difference_by_prompt": {"letters": [seed / 10, 1.0, None]}} for seed in SEEDS]
    before, after = measures_of_runs(summaries)
    change = crossed_difference(before["letters"], after["letters"])
    assert change["mean"] == pytest.approx(0.6)
    assert change["n"] == 2
