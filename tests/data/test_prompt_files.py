"""Prompt files as other tools write them hold the prompts that were written, or are refused in one line."""

from __future__ import annotations

import codecs
import gzip
import io
import json

import pandas
import pyarrow.parquet
import pytest

from tests.conftest import ROOT
from textcraftor.data.prompt_files import all_rows, read_prompts, read_rows
from textcraftor.errors import UsageError

PROMPTS = [
    'a sign that says "OPEN", at night',
    "first line\nsecond line",
    '"quoted" at the start',
    "a tab\there; semicolons; and, commas",
    "漢字 and 🦊 and \u2028 within",
]
TABLE = pandas.DataFrame({"Number": range(5), "Prompt": PROMPTS, "Category": list("ababa")})


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def beyond_all_calendars() -> bytes:
    """A table with a date that Python does not have."""
    written = io.BytesIO()
    when = pyarrow.array([2**62], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "when": when}), written)
    return written.getvalue()


@pytest.fixture
def write(tmp_path):
    """Write a file; returns its path."""

    def written(name: str, content: str | bytes):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return written


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", TABLE.to_csv()),
        ("a.CSV", TABLE.to_csv(index=False, sep=";")),
        ("a.tsv", TABLE.to_csv(sep="\t", index=False)),
        ("a.csv", "\ufeff" + TABLE.to_csv(index=False).replace("Prompt", "TEXT")),
        ("a.csv", TABLE.to_csv(index=False, lineterminator="\r\n")),
        ("a.json", json.dumps(PROMPTS)),
        ("a.JSON", TABLE.to_json(orient="records")),
        ("a.json", TABLE.to_json(orient="records", lines=True)),
        ("a.jsonl", lines({"caption": prompt} for prompt in PROMPTS)),
        ("a.ndjson", "\n" + "\n".join(json.dumps(prompt, ensure_ascii=False) for prompt in PROMPTS)),
        ("a.jsonl.gz", gzip.compress(lines({"text": prompt} for prompt in PROMPTS).encode(), mtime=0)),
        ("a.csv.GZ", gzip.compress(TABLE.to_csv().encode("utf-16"), mtime=0)),
        ("a.parquet", TABLE.to_parquet()),
    ],
)
def test_every_table_gives_the_prompts_that_were_written(write, name, content):
    assert read_prompts(write(name, content)) == PROMPTS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a", "a.prompts"])
def test_lines_end_at_line_ends_alone_in_any_marked_encoding(write, name, end, encoding):
    """U+2028, U+0085, form feeds and others that Python calls line breaks are parts of a prompt."""
    prompts = ["a red\u2028circle", "a blue\x85star", "a pink\x0ccross \x1c ring", "漢字"]
    assert read_prompts(write(name, end.join(prompts).encode(encoding))) == prompts


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ('number;prompt\r1;a cat\r2;"a ""b"""\r', ["a cat", 'a "b"']),  # a carriage return ends a line
        ("\r\n\r\nnumber;prompt\r\n1;a cat\r\n", ["a cat"]),
        ('number, prompt\n1, "a cat, asleep"\n', ["a cat, asleep"]),
        ('"number", "prompt"\n"1", "a cat"\n', ["a cat"]),
        ("prompt,prompt\na cat,a dog\n", ["a cat"]),  # the first of a name, as pandas has it
        ("number,prompt\n1\n2,a cat\n", ["a cat"]),
        (f"prompt,bytes\na cat,{'x' * 200_000}\n", ["a cat"]),
        ("\ufeff\ufeffprompt\na cat\n\ufeffa dog\n", ["a cat", "a dog"]),  # as files that were joined have it
    ],
)
def test_tables_that_people_wrote_by_hand(write, content, prompts):
    assert read_prompts(write("a.csv", content)) == prompts


def test_of_columns_that_differ_in_case_alone_it_is_that_in_lower_case(write):
    rows = [{"Prompt": "A", "prompt": "a"}, {"prompt": "b", "Prompt": "B"}]
    assert read_prompts(write("a.jsonl", lines(rows))) == ["a", "b"]
    assert read_prompts(write("a.jsonl", lines(rows)), " Prompt") == ["a", "b"]
    assert read_prompts(write("a.jsonl", lines(rows)), "Prompt") == ["A", "B"]


def test_a_table_that_quotes_nothing_keeps_its_quotes(write):
    """As PartiPrompts: a quote at the beginning of a field belongs to the prompt."""
    text = 'Prompt\tCategory\n"Hello" on a sign\tArts\na 12" record\tArts\n'
    assert read_prompts(write("a.tsv", text)) == ['"Hello" on a sign', 'a 12" record']


def test_published_sets_have_the_numbers_that_they_are_known_for():
    folder = ROOT.parent / "shared" / "data" / "prompts"
    if not folder.exists():
        pytest.skip("the published sets are not here")
    counts = {"parti_prompts.tsv": 1632, "drawbench.txt": 200, "ocr_prompts.txt": 1018, "refl_data.json": 9798}
    assert {name: len(read_prompts(folder / name)) for name in counts} == counts
    assert len(all_rows(folder / "refl_data.json")) == 10_000


def test_columns_are_found_by_their_usual_names_and_by_a_given_one(write):
    file = write("a.csv", "id,Prompt,German\n1,a red circle,ein roter Kreis\n")
    assert read_prompts(file) == ["a red circle"]
    assert read_prompts(file, "German") == read_prompts(file, "german") == ["ein roter Kreis"]
    assert read_rows(file)[0]["German"] == "ein roter Kreis"
    with pytest.raises(UsageError, match=r"no column french; its columns are id, Prompt, German"):
        read_prompts(file, "french")


def test_styles_of_an_interface_are_read_by_their_prompts(write):
    """AUTOMATIC1111's styles.csv; a style with a placeholder is no prompt, and says so by its name."""
    header = "\ufeffname,prompt,negative_prompt\n"
    assert read_prompts(write("styles.csv", header + 'Sign,"a sign, ""OPEN""",blurry\nNone,,\n')) == ['a sign, "OPEN"']
    with pytest.raises(UsageError, match=r"row 2: '\{prompt\}, oil on canvas' has the placeholder \{prompt\}"):
        read_prompts(write("styles.csv", header + 'Sign,a sign,\nOil,"{prompt}, oil on canvas",\n'))


def test_what_is_left_out_is_counted(write):
    told: list[str] = []
    file = write("a.txt", "a red circle\n\n  a red circle \na star\n   \n")
    assert read_prompts(file, say=told.append) == ["a red circle", "a star"]
    assert told == [f"prompts: 2 in {file}, 1 repetition and 2 empty ones left out"]
    assert [row["prompt"] for row in all_rows(file)] == ["a red circle", "", "a red circle", "a star", ""]
    missing = write("a.json", '[null, {"prompt": null}, {"prompt": NaN}, "a star"]')
    assert read_prompts(missing) == ["a star"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "caf\xe9 au lait".encode("latin-1"), r"no text in UTF-8 \(byte 3 is 0xe9\): save it as UTF-8"),
        ("a.txt", "a star".encode("utf-16-le"), r"no text in UTF-8 \(line 1 has the byte 0x00\)"),
        ("a.txt", b"\xff\xfea", r"no text in UTF-16"),
        ("a.txt", codecs.BOM_UTF8 + b"ab\xe9 c", r"no text in UTF-8 \(byte 5 is 0xe9\)"),
        ("a.txt", b"a" * 99_999 + b"\xe9", r"no text in UTF-8 \(byte 99999 is 0xe9\)"),
        ("a.txt", "a\0".encode("utf-16"), r"no text in UTF-16 \(line 1 has the byte 0x00\)"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0", r"no text in UTF-8 \(byte 0 is 0x89\)"),
        ("a.json", '{"prompt": "a star"}', r"holds an object: give a list of texts, or of objects with prompt or"),
        ("a.json", '"a star"', "holds a str: give a list"),
        ("a.json", "[1]", "row 1: '1' is no text"),
        ("a.json", '[["a", "b"]]', r"row 1: .* is no text"),
        ("a.json", '["a\\ud800"]', "row 1: .* has a character that no text can hold"),
        ("a.json", "[" * 100_000, "cannot be read as JSON: maximum recursion depth"),
        ("a.json", '["a"', "cannot be read as JSON"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ', "line 2 cannot be read as JSON"),
        ("a.jsonl", '{"prompt": "a"}\n{"title": "b"}', "row 2: no column prompt or text or caption; its columns are"),
        ("a.csv", "prompt,seed\na cat, asleep,1\n", "row 1 has 3 cells for 2 columns: put texts that"),
        ("a.csv", 'prompt\n"a cat', "cannot be read as a table"),
        ("a.csv", "a red circle\na blue star\n", "its columns are a red circle: name one by prompts.column="),
        ("a.csv", "", "holds no prompt"),
        ("a.csv", "prompt\n", "holds no prompt"),
        ("a.parquet", b"PAR1", "cannot be read as parquet"),
        ("a.parquet", beyond_all_calendars(), "cannot be read as parquet: date value out of range"),
        ("a.txt.gz", b"no gzip", "cannot be unpacked"),
        ("a.txt.gz", gzip.compress(b"a star", mtime=0)[:-9], "cannot be unpacked"),
    ],
)
def test_what_is_no_list_of_prompts_is_one_line(write, name, content, words):
    with pytest.raises(UsageError, match=words) as refused:
        read_prompts(write(name, content))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("prompts.path=")


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"is a folder"):
        read_prompts(tmp_path)
    with pytest.raises(UsageError, match=r"prompts.held_out=.* does not exist"):
        read_prompts(tmp_path / "x.txt", key="prompts.held_out")
