"""Captioned pictures: every layout gives the same records; what is broken is counted and named, never fatal."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from textcraftor.data.blend import Blend, RecordDraw
from textcraftor.data.records import Record, Records
from textcraftor.errors import UsageError

ROWS = [
    {"file_name": "a.png", "caption": "a red circle", "synthetic": [{"kind": "short", "text": "circle"}], "quoted": []},
    {"file_name": "b.png", "caption": " ", "synthetic": [], "quoted": []},
    {
        "file_name": "c.png",
        "caption": 'a star with the word "AB"',
        "synthetic": [{"kind": "short", "text": "a star"}, {"kind": "descriptive", "text": "a large star"}],
        "quoted": ["AB"],
    },
]


def color(index: int) -> tuple[int, int, int]:
    return (40 * index, 80, 200 - 40 * index)


@pytest.fixture
def folder(tmp_path) -> Path:
    for index, row in enumerate(ROWS):
        Image.new("RGB", (8, 8), color(index)).save(tmp_path / row["file_name"])
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def as_table(folder: Path, to: Path, kind: str) -> Path:
    """The same rows in another layout."""
    columns = {name: [row[name] for row in ROWS] for name in ("caption", "synthetic", "quoted")}
    columns["key"] = [row["file_name"] for row in ROWS]
    columns["image"] = [{"bytes": (folder / row["file_name"]).read_bytes()} for row in ROWS]
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    to.mkdir()
    match kind:
        case "parquet":
            table.to_parquet(str(to / "metadata.parquet"))
        case "datasets":
            table.save_to_disk(str(to))
        case "webdataset":
            with tarfile.open(to / "0.tar", "w") as shard:
                for row in ROWS:
                    name = Path(row["file_name"])
                    (to / f"{name.stem}.json").write_text(json.dumps(row))
                    shard.add(folder / name, f"{name.stem}.png")
                    shard.add(to / f"{name.stem}.json", f"{name.stem}.json")
    return to


@pytest.mark.parametrize("kind", ["parquet", "datasets", "webdataset"])
def test_every_layout_gives_the_records_of_the_json_lines(folder, tmp_path, kind):
    wanted, found = Records.read(folder), Records.read(as_table(folder, tmp_path / kind, kind))
    for one, other in zip(wanted.records, found.records, strict=True):
        assert Path(other.key).stem == Path(one.key).stem
        assert (other.caption, other.synthetic, other.quoted) == (one.caption, one.synthetic, one.quoted)
    for index in range(2):
        assert np.array_equal(np.array(found.picture(index)), np.array(wanted.picture(index)))
        assert found.picture(index).getpixel((0, 0)) == color(2 * index)
    assert wanted.kinds == {"short": 2, "descriptive": 1}


def test_empty_captions_are_named_and_broken_pictures_say_why(folder):
    (folder / "c.png").write_bytes((folder / "c.png").read_bytes()[:40])
    (folder / "a.png").unlink()
    records = Records.read(folder)
    assert records.skipped == {"b.png": "its caption is empty"}
    assert (
        "2 captioned pictures, 2 with short captions, 1 with descriptive captions; 1 skipped (b.png" in records.told()
    )
    for index in range(2):
        with pytest.raises(OSError, match=r"a\.png|c\.png|truncated|cannot identify"):
            records.picture(index)
    left = records.only([1], {0: "its picture cannot be read"})
    assert left.skipped == records.skipped | {"a.png": "its picture cannot be read"}


def test_further_captions_are_joined_by_key(folder):
    more = folder / "captions.jsonl"
    more.write_text('{"key": "a.png", "kind": "descriptive", "text": "a small red circle", "model": "m"}\n')
    (record, _) = Records.read(folder, [more]).records
    assert record.synthetic == {"short": ["circle"], "descriptive": ["a small red circle"]}
    more.write_text('{"key": "z.png", "kind": "descriptive", "text": "x"}\n')
    with pytest.raises(UsageError, match=r"1 keys are not in .*, as z.png"):
        Records.read(folder, [more])
    more.write_text('{"key": "a.png"}\n')
    with pytest.raises(UsageError, match="line 1: key, kind and text are needed"):
        Records.read(folder, [more])


def test_what_is_no_data_set_is_refused(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="holds no table"):
        Records.read(empty)
    with pytest.raises(UsageError, match="does not exist"):
        Records.read(tmp_path / "nowhere")
    (empty / "metadata.jsonl").write_text('{"file_name": "a.png", "label": 3}\n')
    with pytest.raises(UsageError, match="has the columns file_name, label, but none of prompt, text, caption, txt"):
        Records.read(empty)
    (empty / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": ""}\n')
    with pytest.raises(UsageError, match="every caption is empty"):
        Records.read(empty)
    (empty / "metadata.jsonl").write_text("{broken\n")
    with pytest.raises(UsageError, match="cannot be read"):
        Records.read(empty)


RECORDS = [
    Record(str(i), f"plain {i}", {"descriptive": [f"one {i}", f"other {i}"]} if i % 4 else {}) for i in range(40)
]


def test_blending_takes_synthetic_captions_in_their_share_and_the_same_ones_again():
    """A three-quarters share of records has them; the draw depends on seed, epoch and record alone."""
    blend = Blend(0.8, dropout=0.1, seed=3)
    drawn = [[blend(record, epoch, index) for index, record in enumerate(RECORDS)] for epoch in range(200)]
    flat = np.array(drawn).ravel()
    assert np.mean(flat == "") == pytest.approx(0.1, abs=0.01)
    synthetic = np.char.startswith(flat, "one") | np.char.startswith(flat, "other")
    assert synthetic.mean() == pytest.approx(0.9 * 0.8 * 0.75, abs=0.02)
    assert np.char.startswith(flat, "one").mean() == pytest.approx(synthetic.mean() / 2, abs=0.02)
    assert drawn[7] == [blend(record, 7, index) for index, record in enumerate(RECORDS)]
    assert drawn[7] != drawn[8]
    assert {Blend(1.0)(record, 0, i)[:3] for i, record in enumerate(RECORDS) if i % 4} == {"one", "oth"}
    assert Blend(0.0)(RECORDS[1], 0, 1) == "plain 1"
    with pytest.raises(UsageError, match=r"captions.kind=short: no record has such captions; there are descriptive"):
        Blend(0.5, "short").check(RECORDS)
    Blend(0.0, "short").check(RECORDS)


def test_an_epoch_shows_every_record_once_in_batches_of_one_size():
    buckets = [list(range(0, 24)), list(range(24, 36))]
    draw = RecordDraw(RECORDS[:36], buckets, Blend(0.0), seed=1)
    epochs = [[draw(step, 6) for step in range(first, first + 6)] for first in (0, 6)]
    for epoch in epochs:
        shown = [example.index for batch in epoch for example in batch]
        assert sorted(shown) == list(range(36))
        assert all(len({example.index < 24 for example in batch}) == 1 for batch in epoch)
    assert epochs[0] != epochs[1]
    assert draw(9, 6) == RecordDraw(RECORDS[:36], buckets, Blend(0.0), seed=1)(9, 6), "a function of seed and step"
    odd = RecordDraw(RECORDS[:10], [list(range(10))], Blend(0.0), seed=1)
    assert {example.index for step in range(3) for example in odd(step, 4)} == set(range(10))


def counts(draw: RecordDraw, steps: range, batch_size: int) -> np.ndarray:
    shown = [example.index for step in steps for example in draw(step, batch_size)]
    return np.bincount(shown, minlength=len(draw.records))


@pytest.mark.parametrize(
    ("sizes", "batch_size"), [((32, 1), 32), ((20, 9, 3, 1), 8), ((5,), 32), ((3, 2), 16), ((7, 5, 1), 1), ((40,), 7)]
)
def test_every_picture_is_drawn_equally_often_whatever_its_shape(sizes, batch_size):
    """Exactly once an epoch: the odd one of 33 pictures is not half of what is seen. A batch size of 1 divides all."""
    total, ends = sum(sizes), np.cumsum(sizes).tolist()
    buckets = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    draw = RecordDraw([Record(str(i), f"plain {i}") for i in range(total)], buckets, Blend(0.0), seed=3)
    assert counts(draw, range(total), batch_size).tolist() == [batch_size] * total
    for steps in (1, 2, 5, 11):
        shown = counts(draw, range(steps), batch_size)
        assert shown.max() - shown.min() <= 1
    first = [[example.index for example in draw(step, batch_size)] for step in range(40)]
    again = RecordDraw(draw.records, buckets, Blend(0.0), seed=3)
    assert [[example.index for example in again(step, batch_size)] for step in reversed(range(40))] == first[::-1]


def test_batches_of_mixed_shapes_are_few():
    """At most two an epoch here: what is left of three shapes, and the batch that the next epoch fills up."""
    buckets = [list(range(0, 20)), list(range(20, 33)), list(range(33, 40))]
    draw = RecordDraw(RECORDS, buckets, Blend(0.0), seed=1)
    bucket_of = {index: number for number, bucket in enumerate(buckets) for index in bucket}
    mixed = [len({bucket_of[example.index] for example in draw(step, 4)}) > 1 for step in range(100)]
    assert sum(mixed) <= 20


def test_extra_records_make_up_their_share_of_every_epoch():
    draw = RecordDraw(RECORDS, [list(range(40))], Blend(0.0), 2, extra=range(36, 40), share=0.19)
    shown = [example.index for step in range(11) for example in draw(step, 4)]
    assert sum(index >= 36 for index in shown) / len(shown) == pytest.approx(0.19, abs=0.02)
    assert set(shown) == set(range(40))
    few = RecordDraw(RECORDS, [list(range(40))], Blend(0.0), 2, extra=range(10, 40), share=0.5)
    assert counts(few, range(15), 4).tolist() == [3] * 10 + [1] * 30, "they take turns from epoch to epoch"
