"""The watch against figures that are known: alarms, the early stop, the saved point; looking leaves no trace."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import stats

from tests.conftest import load
from textcraftor.evaluation.evaluate import Evaluation, held_out, held_out_error, seed_spreads
from textcraftor.evaluation.image_statistics import image_statistics
from textcraftor.models.published_names import published
from textcraftor.training.watch import Alarm, Watch


def evaluation(**measures) -> Evaluation:
    images = torch.zeros(2, 2, 3, 4, 4, dtype=torch.uint8)
    return Evaluation(("a", "b"), (0, 1), images, {name: np.array(values) for name, values in measures.items()})


def test_held_out_is_the_mean_change_of_what_was_not_trained_on():
    before = evaluation(trained=[[0.0, 2.0], [0.0, 2.0]], kept=[[0.0, 2.0], [0.0, 2.0]], total=[[0.0, 2.0], [0.0, 2.0]])
    after = evaluation(trained=[[9.0, 9.0], [9.0, 9.0]], kept=[[2.0, 4.0], [2.0, 4.0]], total=[[4.0, 4.0], [4.0, 4.0]])
    units = {"trained": 1.0, "kept": 0.5, "total": 2.0}
    assert held_out(after, before, {"trained": 1.0, "kept": 0.0}, units) == pytest.approx(4.0)
    assert held_out(after, before, {"trained": 1.0}, units) == pytest.approx(1.5), "none is held out: the total counts"


def test_held_out_is_the_same_for_prompts_that_are_alike_and_that_are_not():
    """Its unit is the spread over the untuned pictures of one prompt, of all sets together."""
    alike = evaluation(kept=[[0.0, 2.0], [0.0, 2.0]])
    unlike = evaluation(kept=[[0.0, 2.0], [50.0, 52.0]])
    one_seed = evaluation(kept=[[0.0], [8.0]])
    unit = np.sqrt(2)
    for sets in ([alike], [unlike], [alike, unlike], [unlike, one_seed]):
        units = seed_spreads(one.measures for one in sets)
        assert units == {"kept": pytest.approx(unit)}
        for before in sets:
            after = evaluation(kept=before.measures["kept"] + 1)
            assert held_out(after, before, {"kept": 0.0}, units) == pytest.approx(1 / unit)
    assert seed_spreads([one_seed.measures]) == {"kept": 4.0}, "no prompt has two pictures: over all pictures"


def test_the_error_of_held_out_is_the_standard_error_over_prompts():
    """A prompt without the measure does not count; one prompt has no error."""
    before = evaluation(kept=[[0.0, 2.0], [0.0, 4.0]], other=[[1.0, 1.0], [np.nan, np.nan]])
    after = evaluation(kept=[[1.0, 3.0], [4.0, 8.0]], other=[[3.0, 3.0], [np.nan, np.nan]])
    units, weights = {"kept": 0.5, "other": 2.0}, {"kept": 0.0, "other": 0.0}
    assert held_out_error(after, before, {"kept": 0.0}, units) == pytest.approx(stats.sem([2.0, 8.0]))
    assert held_out_error(after, before, weights, units) == pytest.approx(stats.sem([1.5, 8.0]))
    assert held_out_error(after, before, {"other": 0.0}, units) == 0


@pytest.mark.parametrize(
    ("looks", "saved"), [([2.0, 1.0, 1.5], 3), ([2.0, 1.0, 0.4], 2), ([1.0, 3.0, 1.0], 2), ([1.0, -4.0, 0.2], 3)]
)
def test_the_last_point_within_a_standard_error_of_the_highest_is_saved(looks, saved, tmp_path, monkeypatch):
    """Each look's change is its figure on average, with a standard error of 1 over the two prompts."""
    before, state = evaluation(kept=np.zeros((2, 2)), total=np.zeros((2, 2))), SimpleNamespace()
    state.step, state.learners, state.averaged = 0, [], nullcontext
    state.watched = {"points": [], "best": {}, "stopped_by": []}
    monkeypatch.setattr("textcraftor.training.watch.state_of", lambda learners: state.step)

    def look() -> Evaluation:
        figure = looks[state.step - 1]
        return evaluation(kept=[[figure - 1] * 2, [figure + 1] * 2], total=np.zeros((2, 2)))

    watch = Watch(look, before, {"kept": 0.0}, {"kept": 1.0, "total": 1.0}, {}, [], tmp_path)
    for _ in looks:
        state.step += 1
        watch(state)
    assert [point["held_out_error"] for point in state.watched["points"]] == pytest.approx([1.0] * len(looks))
    assert state.watched["best"] == saved


def test_alarms_ring_outside_their_limits():
    assert Alarm(low=-1.0).rings(-1.1)
    assert not Alarm(low=-1.0).rings(5.0)
    assert Alarm(high=0.5).rings(0.6)
    assert not Alarm(low=-1.0, high=0.5).rings(0.0)


def test_image_statistics_of_pictures_that_are_known():
    pictures = torch.zeros(3, 3, 8, 8)
    pictures[1] = 1
    pictures[2, 0, :, ::2] = 1  # red and black columns
    found = {name: values.tolist() for name, values in image_statistics(pictures).items()}
    assert found["near_black"] == [1, 0, 0.5]
    assert found["near_white"] == [0, 1, 0]
    assert found["saturation"] == [0, 0, 0.5]
    assert found["contrast"] == pytest.approx([0, 0, 1 / 6])
    assert found["edges"] == pytest.approx([0, 0, 1 / 6])


def test_an_alarm_ends_the_run_and_the_best_point_is_what_is_saved(go):
    """A learning rate that wrecks the encoder: the drift alarm ends the run at its first look, the last look's weights
    are kept beside the best ones, and every watched measure has its curve."""
    folder = go(
        "wrecked",
        "rewards=aesthetic",
        "optim.lr=0.3",
        "training.warmup=0",
        "training.steps=6",
        "watch.every=2",
        "stop_on=[drift]",
        "watch.alarms.drift.high=0.05",
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stopped_by"] == ["drift"]
    assert summary["steps"] < 6
    for name, change in summary["difference"].items():
        each = np.array(summary["difference_by_prompt"][name], float)
        assert (change["mean"], change["n"]) == (pytest.approx(np.nanmean(each)), np.isfinite(each).sum())
    points = summary["watched"]
    assert [point["step"] for point in points][:2] == [0, 2]
    assert {"held_out", "gap", "drift", "diversity", "saturation", "near_black", "total"} <= set(points[-1])
    assert "drift" in points[-1]["alarms"]
    best = max(points[1:], key=lambda point: point["held_out"])["step"]
    state = torch.load(folder / "checkpoints" / f"step_{summary['steps']:06d}" / "state.pt", weights_only=True)
    saved, encoder = load_file(folder / "text_encoder" / "model.safetensors"), load().encoders()["text_encoder"]
    for name, value in state["watched"]["best"].items():
        torch.testing.assert_close(saved[published(name.removeprefix("text_encoder."), encoder)], value, rtol=0, atol=0)
    assert (folder / "samples" / f"step_{best:06d}.png").exists()
    html = (folder / "report.html").read_text()
    assert "Stopped by: drift" in html
    assert f"<h3>Step {best}</h3>" in html


def test_looking_every_step_or_once_leads_to_the_same_weights(go):
    """Also with a scorer that draws random numbers while it looks, as a user's own may."""
    noisy = (
        "rewards=aesthetic",
        "+rewards.noisy.weight=0",
        "+rewards.noisy.reward._partial_=true",
        "+rewards.noisy.reward._target_=tests.training.test_watch.noise",
    )
    often, once = (go(f"every_{every}", f"watch.every={every}", "evaluation.prompts=1", *noisy) for every in (1, 100))
    ours, theirs = (load_file(run / "last" / "text_encoder" / "model.safetensors") for run in (often, once))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    lines = [
        [json.loads(line)["reward/noisy"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (often, once)
    ]
    assert lines[0] == lines[1]


def noise(images, prompts):
    return images.mean((1, 2, 3)) + torch.rand(len(images))


def test_the_grid_is_captioned_with_scores(go):
    with Image.open(go("grid", "rewards=aesthetic", "training.steps=1") / "samples" / "step_000001.png") as grid:
        assert grid.height > 128
        below = np.asarray(grid.convert("L"))[130:]
    assert below.min() < 128 < below.max(), "no text under the pictures"
