"""Every layout that people keep captioned pictures in gives the same records; nothing is lost in silence."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from textcraftor.data.blend import Blend
from textcraftor.data.records import Record, Records
from textcraftor.errors import UsageError

NAMES = [f"{number:02d}" for number in range(6)]


def caption(number: int) -> str:
    return f'a "{number}", red'


def picture(number: int, format: str = "PNG") -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * number, 80, 200)).save(written, format)
    return written.getvalue()


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def put(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def pictures(numbers=range(6), under: str = "") -> dict[str, str | bytes]:
    return {f"{under}{NAMES[number]}.png": picture(number) for number in numbers}


def delimited(delimiter: str, rows: list[list[str]]) -> str:
    written = io.StringIO()
    csv.writer(written, delimiter=delimiter).writerows(rows)
    return written.getvalue()


def table(delimiter: str, header: tuple[str, str] = ("file_name", "caption"), numbers=range(6)) -> str:
    return delimited(delimiter, [[*header], *([f"{NAMES[number]}.png", caption(number)] for number in numbers)])


def lines(numbers=range(6), **names: str) -> str:
    file_name, text = names.get("file_name", "file_name"), names.get("text", "caption")
    return "".join(json.dumps({file_name: f"{NAMES[n]}.png", text: caption(n)}) + "\n" for n in numbers)


def parquet(numbers, image: str = "image", text: str = "caption") -> bytes:
    """As pandas writes it: plain structs of bytes and path, nothing that says they are pictures."""
    rows = {image: [{"bytes": picture(n), "path": None} for n in numbers], text: [caption(n) for n in numbers]}
    written = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(rows), written)
    return written.getvalue()


def shard(numbers, *extra: tuple[str, bytes]) -> bytes:
    """A webdataset shard, pictures of two formats."""
    members = [
        member
        for n in numbers
        for member in (
            (f"{NAMES[n]}.{'png' if n % 2 else 'webp'}", picture(n, "PNG")),
            (f"{NAMES[n]}.txt", caption(n).encode()),
        )
    ]
    return archive([*members, *extra])


def archive(members: list[tuple[str, bytes]]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as packed:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return written.getvalue()


def texts(suffix: str, numbers=range(6), under: str = "") -> dict[str, str | bytes]:
    return {f"{under}{NAMES[number]}{suffix}": caption(number) + "\n" for number in numbers}


def saved(folder: Path, splits: tuple[str, ...] = ()) -> Path:
    whole = datasets.Dataset.from_dict(
        {"image": [{"bytes": picture(n), "path": None} for n in range(6)], "caption": [caption(n) for n in range(6)]}
    ).cast_column("image", datasets.Image())
    (datasets.DatasetDict(dict.fromkeys(splits, whole)) if splits else whole).save_to_disk(str(folder))
    return folder


LAYOUTS: dict[str, dict[str, str | bytes]] = {
    "a .txt beside each": {**pictures(), **texts(".txt")},
    "a .caption beside each": {**pictures(), **texts(".caption")},
    "kohya's folders": {
        **pictures(range(3), "10_sks dog/"),
        **texts(".txt", range(3), "10_sks dog/"),
        **pictures(range(3, 6), "2_cat/"),
        **texts(".txt", range(3, 6), "2_cat/"),
    },
    "metadata.csv": {**pictures(), "metadata.csv": table(",")},
    "metadata.tsv": {**pictures(), "metadata.tsv": table("\t")},
    "a BOM, Windows' line ends and another case": {
        **pictures(),
        "metadata.csv": "\ufeff" + table(",", ("File_Name", "Caption")),
    },
    "JSON lines of another case": {
        **pictures(),
        "metadata.jsonl": "\ufeff" + lines(file_name="FILE_NAME", text="Text"),
    },
    "UTF-16 and semicolons, as spreadsheets write them": {
        **pictures(),
        "metadata.csv": table(";", ("Caption ", "FileName")[::-1]).encode("utf-16"),
    },
    "UTF-16 with tabs": {**pictures(), "metadata.TSV": table("\t").encode("utf-16")},
    "UTF-16 JSON lines": {**pictures(), "metadata.jsonl": lines().encode("utf-16")},
    "UTF-16 beside each": {**pictures(), **{name: str(text).encode("utf-16") for name, text in texts(".txt").items()}},
    "a space behind each comma": {**pictures(), "metadata.csv": table(",").replace(',"', ', "')},
    "metadata in train/": {**pictures(under="train/"), "train/metadata.csv": table(",")},
    "metadata in data/train/, another split beside it": {
        **pictures(under="data/train/"),
        "data/train/metadata.jsonl": lines(),
        **pictures(under="data/test/"),
        "data/test/metadata.jsonl": lines(),
    },
    "pairs in train/": {**pictures(under="train/"), **texts(".txt", under="train/"), **pictures(under="val/")},
    "parquet": {"metadata.parquet": parquet(range(6))},
    "shards of parquet as the hub has them": {
        "data/train-00000-of-00002.parquet": parquet(range(3), "Image", "TEXT"),
        "data/train-00001-of-00002.parquet": parquet(range(3, 6), "Image", "TEXT"),
        "data/validation-00000-of-00001.parquet": parquet(range(2), "Image", "TEXT"),
    },
    "shards of parquet of any name": {"a [1].parquet": parquet(range(3)), "b.parquet": parquet(range(3, 6))},
    "parquet as the hub converts it": {"default/train/0000.parquet": parquet(range(6))},
    "shards of a webdataset": {"00000.tar": shard(range(2)), "00001.tar": shard(range(2, 6)), "00000.parquet": b"x"},
    "shards of a webdataset in splits": {"train-0000.tar": shard(range(6)), "test-0000.tar": shard(range(2))},
}


def check_whole(records: Records) -> None:
    assert [record.caption for record in records.records] == [caption(n) for n in range(6)]
    assert [records.picture(n).getpixel((0, 0)) for n in range(6)] == [(40 * n, 80, 200) for n in range(6)]
    assert records.skipped == {}
    assert len({record.key for record in records.records}) == 6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_all_pictures_with_their_captions(layout, tmp_path):
    """Captions with quotes and commas, pictures told apart by their colour."""
    check_whole(Records.read(put(tmp_path, LAYOUTS[layout])))


def test_what_datasets_saved_is_read_whole_and_by_split(tmp_path):
    check_whole(Records.read(saved(tmp_path / "one")))
    check_whole(Records.read(saved(tmp_path / "two", ("validation", "train"))))
    with pytest.raises(UsageError, match=r"data.split=train: .* has the splits test, validation: choose one"):
        Records.read(saved(tmp_path / "three", ("validation", "test")))
    check_whole(Records.read(tmp_path / "three", split="val"))


def test_a_split_is_chosen_and_the_others_are_named(tmp_path):
    folder = put(tmp_path, LAYOUTS["shards of parquet as the hub has them"])
    records = Records.read(folder, split="validation")
    assert [record.caption for record in records.records] == [caption(0), caption(1)]
    assert records.told().endswith("; not read: the split train")
    with pytest.raises(UsageError, match=r"data.split=dog: .* has the splits train, validation"):
        Records.read(folder, split="dog")
    with pytest.raises(UsageError, match=r"data.split=test: .* has the splits train: choose"):
        Records.read(put(tmp_path / "plain", LAYOUTS["metadata.csv"]), split="test")


def test_one_file_may_be_named_instead_of_its_folder(tmp_path):
    put(tmp_path, {**pictures(), "metadata.csv": table(","), "test.tar": shard(range(6))})
    check_whole(Records.read(tmp_path / "metadata.csv"))
    check_whole(Records.read(tmp_path / "test.tar"))


def test_what_has_no_picture_or_no_caption_is_counted_and_named(tmp_path):
    files = {**pictures(), **texts(".txt", range(4)), "left.txt": "over", "03.txt": " \n", "00000.parquet": b"x"}
    records = Records.read(put(tmp_path, files))
    missing = "it has no caption beside it"
    assert records.skipped == {"03.png": missing, "04.png": missing, "05.png": missing, "left.txt": "it has no picture"}
    assert "3 captioned pictures" in records.told()
    assert "4 skipped" in records.told()
    assert "not read: 00000.parquet" in records.told()
    rows = lines(range(3)) + '{"caption": "no picture"}\n{"file_name": "05.png", "caption": null}\n'
    records = Records.read(put(tmp_path / "table", {**pictures(), "metadata.jsonl": rows}))
    assert records.skipped == {"3": "it has no picture", "05.png": "its caption is empty"}


def test_texts_beside_pictures_that_a_table_names_are_told(tmp_path):
    records = Records.read(put(tmp_path, {**pictures(), **texts(".txt", range(2)), "metadata.csv": table(",")}))
    assert records.told().endswith("; not read: the texts beside 2 pictures")


def test_names_that_no_file_can_have_are_told(tmp_path):
    rows = [json.dumps({"file_name": name, "caption": "x"}) for name in ("00.png", "a" * 999, "a\0b")]
    records = Records.read(put(tmp_path, jsonl(*rows)))
    for index in (1, 2):
        with pytest.raises(OSError, match=r"too long|null|cannot be read"):
            records.picture(index)
    with pytest.raises(UsageError, match="none of its pictures is there"):
        Records.read(put(tmp_path / "again", {"metadata.jsonl": "\n".join(rows[1:])}))


def test_pictures_of_one_name_in_two_shards_are_two_pictures(tmp_path):
    records = Records.read(put(tmp_path, {"a.tar": shard(range(2)), "b.tar": shard(range(2))}))
    assert [record.key for record in records.records] == ["00", "01", "00 (2)", "01 (2)"]


SEVERAL: dict[str, dict[str, str | bytes]] = {
    "a list": {"metadata.jsonl": json.dumps({"file_name": "00.png", "caption": ["one", "two", "three", " "]})},
    "a list in a cell": {
        "metadata.csv": delimited(",", [["file_name", "text"], ["00.png", "['one', 'two', 'three']"]])
    },
    "an array of numpy in a cell": {
        "metadata.csv": delimited(",", [["file_name", "text"], ["00.png", "['one' \"two\"\n 'three']"]])
    },
    "a list in JSON in a cell": {
        "metadata.csv": delimited(",", [["file_name", "captions"], ["00.png", '["one", "two", "three"]']])
    },
    "numbered columns": {"metadata.csv": "file_name,caption_10,caption_2,Caption_1\n00.png,three,two,one\n"},
    "columns of one name": {"metadata.csv": "file_name,caption,caption,caption\n00.png,one,two,three\n"},
    "columns of different names": {"metadata.csv": "file_name,caption,text,prompt\n00.png,three,two,one\n"},
    "lines": {"00.txt": "one\r\ntwo\n\nthree"},
    "a webdataset": {"0.tar": archive([("00.png", picture(0)), ("00.json", b'{"caption": ["one", "two", "three"]}')])},
}


@pytest.mark.parametrize("form", SEVERAL)
def test_several_captions_of_a_picture_stay_apart(form, tmp_path):
    files = {"00.png": picture(0), **SEVERAL[form]}
    if form == "a webdataset":
        del files["00.png"]
    records = Records.read(put(tmp_path, files))
    (record,) = records.records
    assert record.captions == ("one", "two", "three")
    assert records.captions == ["one", "two", "three"]
    assert "1 with several captions" in records.told()


def test_a_list_in_parquet_stays_a_list(tmp_path):
    rows = {"image": [picture(0)], "caption": [["one", "two"]]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    records = Records.read(tmp_path)
    assert records.records[0].captions == ("one", "two")
    assert records.picture(0).getpixel((0, 0)) == (0, 80, 200)


def test_brackets_that_are_no_list_stay_in_the_caption(tmp_path):
    rows = [
        ["file_name", "caption"],
        ["00.png", "[photo]"],
        ["01.png", "[a] cat [b]"],
        ["02.png", "[1, 2]"],
        ["03.png", "[" * 9999 + "]" * 9999],
    ]
    records = Records.read(put(tmp_path, {**pictures(), "metadata.csv": delimited(",", rows)}))
    assert [record.captions for record in records.records] == [(cells[1],) for cells in rows[1:]]


def test_one_of_several_captions_is_chosen_by_seed_and_epoch():
    """`random` evenly and again alike, `all` each once in as many epochs, `first` the first."""
    record = Record("a", "one", others=("two", "three"))
    drawn = [Blend(0.0, seed=5)(record, epoch, 0) for epoch in range(3000)]
    for text in record.captions:
        assert drawn.count(text) / 3000 == pytest.approx(1 / 3, abs=0.03)
    assert drawn == [Blend(0.0, seed=5)(record, epoch, 0) for epoch in range(3000)]
    assert drawn != [Blend(0.0, seed=6)(record, epoch, 0) for epoch in range(3000)]
    assert {Blend(0.0, choose="first")(record, epoch, 0) for epoch in range(9)} == {"one"}
    turns = [Blend(0.0, choose="all")(record, epoch, 7) for epoch in range(9)]
    assert all(set(turns[first : first + 3]) == set(record.captions) for first in range(7))


def jsonl(*rows: str | bytes) -> dict[str, str | bytes]:
    return {**pictures(), "metadata.jsonl": b"\n".join(row.encode() if isinstance(row, str) else row for row in rows)}


GOOD = '{"file_name": "00.png", "caption": "x"}'
REFUSED: dict[str, tuple[dict[str, str | bytes], str]] = {
    "quoted is a number": (
        jsonl('{"file_name": "00.png", "caption": "x", "quoted": 5}'),
        "line 1: quoted=5 must be text or a list",
    ),
    "a caption is a number": (jsonl(GOOD, '{"file_name": "01.png", "caption": 5}'), "line 2: caption=5 must be text"),
    "a caption is an object": (
        jsonl('{"file_name": "01.png", "caption": {"a": 1}}'),
        "line 1: caption=.* must be text",
    ),
    "a caption is NaN": (jsonl('{"file_name": "01.png", "caption": NaN}'), "line 1: caption=nan must be text"),
    "a caption is half a sign": (
        jsonl('{"file_name": "01.png", "caption": "\\ud800"}'),
        "line 1: caption holds half a sign",
    ),
    "synthetic is text": (
        jsonl('{"file_name": "00.png", "caption": "x", "synthetic": 7}'),
        "line 1: synthetic=7 must be",
    ),
    "synthetic without a kind": (
        jsonl('{"file_name": "00.png", "caption": "x", "synthetic": [{"text": "y"}]}'),
        "synthetic=.* must be",
    ),
    "a picture is a number": (jsonl('{"file_name": 5, "caption": "x"}'), "file_name=5 must be the name of a picture"),
    "deep JSON": (jsonl(GOOD, "[" * 100_000), "line 2 cannot be read as JSON"),
    "deep JSON that is whole": (jsonl(GOOD, '{"a":' * 5000 + "1" + "}" * 5000), "line 2 cannot be read as JSON"),
    "a number of JSON": (jsonl(GOOD, "7"), "line 2: 7 is no JSON object"),
    "Latin letters": (
        jsonl(GOOD, '{"file_name": "01.png", "caption": "é"}'.encode("latin-1")),
        r"metadata.jsonl is no text in UTF-8 \(byte 76 is 0xe9\): save it as UTF-8",
    ),
    "UTF-16 without a mark": (
        {**pictures(), "metadata.csv": table(",").encode("utf-16-le")},
        r"is no text in UTF-8 \(line 1 has the byte 0x00\)",
    ),
    "Latin letters beside a picture": ({**pictures(), "00.txt": "é".encode("latin-1")}, "00.txt is no text in UTF-8"),
    "too many cells": (
        {**pictures(), "metadata.csv": "file_name,caption\n00.png,a,b\n"},
        "row 1 has 3 cells for 2 columns: put texts that hold the delimiter into double quotes",
    ),
    "an open quote": (
        {**pictures(), "metadata.csv": 'file_name,caption\n00.png,"a\n'},
        r"metadata.csv cannot be read as a table \(line 2: unexpected end of data\)",
    ),
    "an empty table": ({**pictures(), "metadata.csv": ""}, "has the columns"),
    "bars": (
        {**pictures(), "metadata.csv": "file_name|caption\n00.png|a\n"},
        r"has the columns file_name\|caption, but none of",
    ),
    "pictures alone": (
        pictures(),
        "holds no table and no captions beside its pictures: give a folder of pictures with a .txt",
    ),
    "a path out": (jsonl('{"file_name": "../secret.png", "caption": "x"}'), r"line 1: ../secret.png leads out of"),
    "a path out and in again by name": (jsonl('{"file_name": "a/../../secret.png", "caption": "x"}'), "leads out of"),
    "a path from the root": (jsonl('{"file_name": "/etc/passwd", "caption": "x"}'), "/etc/passwd leads out of"),
    "no picture is there": (
        jsonl('{"file_name": "nowhere.png", "caption": "x"}'),
        "none of its pictures is there, as .*nowhere.png",
    ),
    "addresses": (
        jsonl('{"image": "https://host/a.png", "caption": "x"}'),
        "https://host/a.png is an address, .* img2dataset",
    ),
    "a column of addresses": (
        {"metadata.csv": "URL,TEXT\nhttps://host/a.png,x\n"},
        "columns text, url, .* download the pictures first",
    ),
    "a shard cut short": ({"0.tar": shard(range(6))[:9000]}, "0.tar is damaged"),
    "a shard of something else behind a member": (
        {"0.tar": shard(range(2)).rstrip(b"\0") + b"\0" * 99 + b"x" * 2000},
        "0.tar is damaged",
    ),
    "a shard of text": ({"0.tar": b"hello" * 999}, "0.tar is damaged"),
    "bad JSON in a shard": (
        {"0.tar": archive([("a.png", picture(0)), ("a.json", b"{")])},
        "a.json cannot be read as JSON",
    ),
    "bad text in a shard": (
        {"0.tar": archive([("a.png", picture(0)), ("a.txt", b"\xff")])},
        "a.txt is no text in UTF-8",
    ),
    "broken parquet": ({"a.parquet": b"PAR1"}, "a.parquet cannot be read"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_strangers_write_is_refused_in_one_line(fault, tmp_path):
    files, why = REFUSED[fault]
    put(tmp_path, {"secret.png": picture(0)})
    with pytest.raises(UsageError, match=why) as refused:
        Records.read(put(tmp_path / "set", files))
    assert "\n" not in str(refused.value)


def test_nan_in_fields_that_are_not_read_does_no_harm(tmp_path):
    """As pandas writes what is missing, into JSON lines and into the JSON of shards."""
    rows = '{"file_name": "00.png", "caption": "x", "similarity": NaN}'
    assert len(Records.read(put(tmp_path / "lines", jsonl(rows)))) == 1
    members = [("00.png", picture(0)), ("00.json", b'{"caption": "x", "punsafe": NaN}')]
    assert len(Records.read(put(tmp_path / "shards", {"0.tar": archive(members)}))) == 1


def test_parquet_with_other_names_of_captions_says_which_columns_it_has(tmp_path):
    put(tmp_path, {"a.parquet": parquet(range(2), text="en_text")})
    with pytest.raises(
        UsageError, match=r"has the columns en_text, image, but none of prompt, .*: rename the one that"
    ):
        Records.read(tmp_path)


def test_numbers_instead_of_captions_in_parquet_are_refused(tmp_path):
    rows = {"image": [picture(0)], "caption": [float("nan")]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="row 0: caption=nan must be text or a list of texts"):
        Records.read(tmp_path)


@pytest.mark.parametrize("address", ["https://host/a.png", "s3://bucket/a.png"])
def test_addresses_in_parquet_are_refused(address, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"image": [address], "caption": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"is an address, .* img2dataset"):
        Records.read(tmp_path)


def link(folder: Path) -> None:
    (folder / "02.png").unlink()
    (folder / "02.png").symlink_to(folder.parent / "secret.png")


def link_of_folder(folder: Path) -> None:
    (folder / "02.png").unlink()
    (folder / "02").symlink_to(folder.parent)
    (folder / "metadata.jsonl").write_text(lines().replace("02.png", "02/secret.png"))


@pytest.mark.parametrize("leave", [link, link_of_folder])
def test_links_out_of_the_folder_are_not_followed(leave: Callable[[Path], None], tmp_path):
    """The picture is there and could be read; links within the folder are followed."""
    put(tmp_path, {"secret.png": picture(5)})
    folder = put(tmp_path / "set", {**pictures(), "metadata.jsonl": lines()})
    leave(folder)
    (folder / "03.png").unlink()
    (folder / "other").mkdir()
    (folder / "04.png").rename(folder / "other" / "4.png")
    (folder / "04.png").symlink_to(folder / "other" / "4.png")
    (folder / "03.png").symlink_to(folder / "other" / "4.png")
    records = Records.read(folder)
    with pytest.raises(OSError, match="leads out of"):
        records.picture(2)
    assert np.array_equal(np.array(records.picture(3)), np.array(records.picture(4)))


def test_a_table_that_names_another_folder_is_refused(tmp_path):
    folder = saved(tmp_path / "one")
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../" + state["_data_files"][0]["filename"]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(UsageError, match="leads out of"):
        Records.read(folder)
