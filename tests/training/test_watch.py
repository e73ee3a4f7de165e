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

from tests.conftest import PROMPTS, add_text_encoder, load
from textcraftor.evaluation.embeddings import embedding_drift
from textcraftor.evaluation.evaluate import Evaluation
from textcraftor.evaluation.held_out import HeldOut, seed_spreads
from textcraftor.evaluation.image_statistics import image_statistics
from textcraftor.evaluation.statistics import paired_z
from textcraftor.models.published_names import published
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.training.watch import Alarm, Watch


def evaluation(**measures) -> Evaluation:
    images = torch.zeros(2, 2, 3, 4, 4, dtype=torch.uint8)
    return Evaluation(("a", "b"), (0, 1), images, {name: np.array(values) for name, values in measures.items()})


def held_out(before: Evaluation, weights, spreads, **applies) -> HeldOut:
    return HeldOut(before, weights, spreads, {name: np.array(judged) for name, judged in applies.items()})


def test_held_out_is_the_mean_change_of_what_was_not_trained_on():
    before = evaluation(trained=[[0.0, 2.0], [0.0, 2.0]], kept=[[0.0, 2.0], [0.0, 2.0]], total=[[0.0, 2.0], [0.0, 2.0]])
    after = evaluation(trained=[[9.0, 9.0], [9.0, 9.0]], kept=[[2.0, 4.0], [2.0, 4.0]], total=[[4.0, 4.0], [4.0, 4.0]])
    units = {"trained": 1.0, "kept": 0.5, "total": 2.0}
    assert held_out(before, {"trained": 1.0, "kept": 0.0}, units).mean(after) == pytest.approx(4.0)
    assert held_out(before, {"trained": 1.0}, units).mean(after) == pytest.approx(1.5), "none is held out: the total"


def test_a_scorer_counts_on_the_prompts_that_it_judges_alone():
    """A reader scores prompts without words 0 before and after: averaged in, they would halve its fall."""
    before = evaluation(kept=[[1.0, 1.0], [1.0, 1.0]], reader=[[-1.0, -1.0], [0.0, 0.0]], total=np.zeros((2, 2)))
    after = evaluation(kept=[[3.0, 3.0], [3.0, 3.0]], reader=[[-4.0, -4.0], [0.0, 0.0]], total=np.ones((2, 2)))
    weights, units = {"kept": 0.0, "reader": 0.0}, {"kept": 1.0, "reader": 1.0, "total": 1.0}
    assert held_out(before, weights, units, reader=[True, False]).mean(after) == pytest.approx((2 - 3) / 2)
    assert held_out(before, weights, units, reader=[False, False]).mean(after) == pytest.approx(2.0), "judges none"
    assert held_out(before, {"reader": 0.0}, units, reader=[False, False]).mean(after) == pytest.approx(1.0)


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
            assert held_out(before, {"kept": 0.0}, units).mean(after) == pytest.approx(1 / unit)
    assert seed_spreads([one_seed.measures]) == {"kept": 4.0}, "no prompt has two pictures: over all pictures"


def test_the_error_of_held_out_is_the_standard_error_over_prompts():
    """Of one scorer, or several on the same prompts, that of each prompt's mean; one prompt has no error."""
    before = evaluation(kept=[[0.0, 2.0], [0.0, 4.0]], other=[[1.0, 1.0], [np.nan, np.nan]])
    after = evaluation(kept=[[1.0, 3.0], [4.0, 8.0]], other=[[3.0, 3.0], [np.nan, np.nan]])
    units, weights = {"kept": 0.5, "other": 2.0, "third": 1.0}, {"kept": 0.0, "third": 0.0}
    assert held_out(before, {"kept": 0.0}, units).error(after) == pytest.approx(stats.sem([2.0, 8.0]))
    assert held_out(before, {"other": 0.0}, units).error(after) == 0
    before.measures["third"], after.measures["third"] = np.zeros((2, 2)), np.array([[5.0, 5.0], [1.0, 1.0]])
    assert held_out(before, weights, units).error(after) == pytest.approx(stats.sem([3.5, 4.5]))


def simulated(rng: np.random.Generator, prompts: int, falls: float = 0.0, common: float = 0.5) -> tuple:
    """Changes of four held-out scorers, correlated over prompts, of which a reader judges every third prompt; the
    others rise. Heavy tails, as likelihoods of text have them."""
    shared = rng.standard_t(3, (prompts, 1))
    own = rng.standard_t(3, (prompts, 4))
    changes = np.sqrt(common) * shared + np.sqrt(1 - common) * own
    judged = np.arange(prompts) % 3 == 0
    changes[:, 3] = np.where(judged, changes[:, 3] - falls, 0.0)
    names = ("first", "second", "third", "reader")
    before, after = ({name: np.zeros((prompts, 1)) for name in names} for _ in range(2))
    for column, name in enumerate(names):
        after[name] = changes[:, column : column + 1]
    images = torch.zeros(prompts, 1, 3, 1, 1, dtype=torch.uint8)
    texts = tuple(map(str, range(prompts)))
    sides = [Evaluation(texts, (0,), images, side) for side in (before, after)]
    return HeldOut(sides[0], dict.fromkeys(names, 0.0), dict.fromkeys(names, 1.0), {"reader": judged}), sides[1]


def test_the_error_holds_where_scorers_judge_different_prompts():
    """Over 2,000 simulated runs it is the standard deviation of the mean."""
    rng = np.random.default_rng(0)
    means, errors = zip(
        *((one.mean(after), one.error(after)) for one, after in (simulated(rng, 48) for _ in range(2000))), strict=True
    )
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.06)


def test_z_has_the_tail_of_students_t():
    rng = np.random.default_rng(0)
    for count in (2, 5, 48):
        changes = rng.normal(-0.5, 1, count)
        tail = stats.ttest_1samp(changes, 0, alternative="less").pvalue
        assert stats.norm.cdf(paired_z(changes)) == pytest.approx(tail)
    assert paired_z(np.array([-1.0])) == paired_z(np.array([-1.0, -1.0])) == paired_z(np.zeros(5)) == 0
    assert paired_z(-1 + 1e-3 * rng.normal(size=500)) == -7


def test_a_scorer_that_falls_while_the_mean_does_not_rings():
    """The reader falls by a standard deviation and a half over 16 prompts: four of five looks ring, and `held_out` does
    not. Where nothing changes, 16 prompts or 5, few do: at most four scorers times the tail of the limit."""
    rng, alarm = np.random.default_rng(1), Alarm(low=-2.5)
    hacked = [simulated(rng, 48, falls=1.5 * 3**0.5) for _ in range(300)]
    worst = [one.worst(after) for one, after in hacked]
    assert np.mean([alarm.rings(z) for z, _ in worst]) > 0.8
    assert np.mean([name == "reader" for _, name in worst]) > 0.9
    healthy = [simulated(rng, prompts) for prompts in (16, 48) for _ in range(1000)]
    share = np.mean([alarm.rings(one.worst(after)[0]) for one, after in healthy])
    assert share < 4 * stats.norm.cdf(-2.5)


@pytest.fixture
def state(monkeypatch) -> SimpleNamespace:
    """Of a run whose weights are the number of its step."""
    one = SimpleNamespace(step=0, learners=[], averaged=nullcontext)
    one.watched = {"points": [], "best": 0, "saved_step": 0, "stopped_by": []}
    monkeypatch.setattr("textcraftor.training.watch.state_of", lambda learners: one.step)
    return one


@pytest.mark.parametrize(
    ("looks", "saved"),
    [
        ([2.0, 1.0, 1.5], 3),
        ([2.0, 1.0, 0.4], 2),
        ([1.0, 3.0, 1.0], 2),
        ([1.0, -4.0, 0.2], 3),
        ([-0.5, -4.0, -2.0], 1),
        ([-4.0, -2.0, -1.5], 0),
    ],
)
def test_the_last_point_within_a_standard_error_of_the_highest_is_saved(looks, saved, state, tmp_path):
    """Each look's change is its figure on average, with a standard error of 1 over the two prompts. What fell by more
    than that is never saved: then the weights are those before training."""
    before = evaluation(kept=np.zeros((2, 2)), total=np.zeros((2, 2)))

    def look(step: int) -> Evaluation:
        figure = looks[step - 1]
        return evaluation(kept=[[figure - 1] * 2, [figure + 1] * 2], total=np.zeros((2, 2)))

    compared = HeldOut(before, {"kept": 0.0}, {"kept": 1.0, "total": 1.0})
    watch = Watch(lambda: look(state.step), compared, {}, [], tmp_path)
    for state.step in range(1, len(looks) + 1):
        watch(state)
    assert [point["held_out_error"] for point in state.watched["points"]] == pytest.approx([1.0] * len(looks))
    assert state.watched["best"] == state.watched["saved_step"] == saved


def test_a_point_at_which_the_worst_scorer_fell_is_not_saved(state, tmp_path):
    """Though the mean over scorers is the highest there; and it is no mark for those after it."""
    zero = np.zeros((8, 1))
    rises, falls = {1: 1.0, 2: 9.0, 3: 0.8}, {1: 0.0, 2: -1.0, 3: 0.0}
    noise = np.linspace(-0.3, 0.3, 8)[:, None]
    images, texts = torch.zeros(8, 1, 3, 4, 4, dtype=torch.uint8), tuple("abcdefgh")
    before = Evaluation(texts, (0,), images, {"kept": zero, "other": zero, "total": zero})

    def look(step: int) -> Evaluation:
        figures = {"kept": zero + rises[step] + 4 * noise, "other": zero + falls[step] + noise, "total": zero}
        return Evaluation(texts, (0,), images, figures)

    compared = HeldOut(before, {"kept": 0.0, "other": 0.0}, {"kept": 1.0, "other": 1.0, "total": 1.0})
    watch = Watch(lambda: look(state.step), compared, {"worst": Alarm(low=-2.5)}, [], tmp_path)
    for state.step in (1, 2, 3):
        watch(state)
    points = state.watched["points"]
    assert [point["alarms"] for point in points] == [[], ["worst"], []]
    assert points[1]["held_out"] > points[0]["held_out"] > 0
    assert points[1]["worst_scorer"] == "other"
    assert state.watched["saved_step"] == 3


def test_alarms_ring_outside_their_limits():
    assert Alarm(low=-1.0).rings(-1.1)
    assert not Alarm(low=-1.0).rings(5.0)
    assert Alarm(high=0.5).rings(0.6)
    assert not Alarm(low=-1.0, high=0.5).rings(0.0)


def test_embeddings_drift_by_the_length_that_they_move(model, sampling):
    """Against the encoders' own outputs: 0 for the same schedule, and .25 for a mix that adds a quarter of them."""
    add_text_encoder(model)
    with torch.no_grad():
        for parameter in model.encoders("tuned")["text_encoder"].parameters():
            parameter.mul_(1.05)
    original, tuned = (ConditioningSchedule(0, {name: 1.0}, {name: 1.0}) for name in ("original", "tuned"))
    longer = ConditioningSchedule(0, {"original": 1.25}, {"original": 1.0})
    prompts = [*PROMPTS, PROMPTS[0]]
    assert not embedding_drift(model, sampling, prompts, original, original, 2).any()
    np.testing.assert_allclose(embedding_drift(model, sampling, prompts, original, longer, 2), 0.25, rtol=1e-5)
    first, last = (model.encode(prompts, None, name).prompt.mixed for name in ("original", "tuned"))
    (name,) = first
    expected = [((last[name][i] - first[name][i]).norm() / first[name][i].norm()).item() for i in range(len(prompts))]
    np.testing.assert_allclose(embedding_drift(model, sampling, prompts, original, tuned, 3), expected, rtol=1e-4)
    assert min(expected) > 0.01


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
    looked_at = {"held_out", "gap", "worst", "drift", "embedding_drift", "diversity", "saturation", "total"}
    assert looked_at <= set(points[-1])
    assert "drift" in points[-1]["alarms"]
    best = max(points[1:], key=lambda point: point["held_out"])["step"]
    assert summary["saved_step"] == best
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
