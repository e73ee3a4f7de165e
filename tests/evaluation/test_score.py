"""`textcraftor score`: pictures find their prompts in three ways, and one line a picture says what scorers think."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from tests.conftest import PROMPTS
from textcraftor.errors import UsageError
from textcraftor.evaluation.score import check, load_picture, pair, run
from textcraftor.inference.pictures import save_png
from textcraftor.rewards.total import load_rewards


@pytest.fixture
def folder(tmp_path):
    """Three pictures, one of another size, with their prompts in the PNGs; and a sheet that is none."""
    made = tmp_path / "made"
    made.mkdir()
    generator = torch.Generator().manual_seed(0)
    for index, (prompt, size) in enumerate(zip(PROMPTS, (64, 96, 64), strict=True)):
        picture = torch.rand(3, size, size, generator=generator)
        save_png(picture, made / f"{index}.png", {"prompt": prompt})
    save_png(torch.rand(3, 64, 64), made / "contact_sheet.png", {})
    return made


def scored(configure, tmp_path, name: str, *overrides: str) -> list[dict]:
    config = configure("score", "rewards=hpsv2", "+reward@rewards.ocr=ocr", "device=cpu", *overrides)
    run(config, tmp_path / name)
    return [json.loads(line) for line in (tmp_path / name / "scores.jsonl").read_text().splitlines()]


def test_three_ways_of_pairing_give_the_same_scores_as_python(configure, tmp_path, folder):
    lines, rows = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    lines.write_text("\n".join(PROMPTS))
    order = [2, 0, 1]
    rows.write_text("\n".join(json.dumps({"image": f"{i}.png", "prompt": PROMPTS[i]}) for i in order))
    by_png = scored(configure, tmp_path, "a", f"images={folder}", "batch_size=2")
    by_order = scored(configure, tmp_path, "b", f"images={folder}", f"prompts.path={lines}")
    by_name = scored(configure, tmp_path, "c", f"images={folder}", f"prompts.path={rows}")
    assert [row["image"] for row in by_name] == [f"{i}.png" for i in order]
    assert [row["prompt"] for row in by_png] == PROMPTS
    rewards = load_rewards(configure("score", "rewards=hpsv2", "+reward@rewards.ocr=ocr").rewards)
    for index in range(3):
        image = load_picture(folder / f"{index}.png")[None]
        expected = {name: float(value) for name, value in rewards(image, PROMPTS[index : index + 1]).items()}
        for row in (by_png[index], by_order[index], by_name[order.index(index)]):
            assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-4)
            assert row["total"] == pytest.approx(100 * expected["hpsv2"] + expected["ocr"], abs=1e-2)
            assert (row["ocr/accuracy"] is None) == ('"' not in PROMPTS[index])


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("few.txt", "a red circle", "1 prompts in .*for 3 pictures"),
        ("bad.jsonl", '{"image": "0.png"}', "bad.jsonl, row 1: no column prompt or .*; its columns are image"),
        ("empty.jsonl", '{"image": "0.png", "prompt": ""}', "empty.jsonl, row 1 must name a picture and its prompt"),
        ("gone.jsonl", '{"image": "9.png", "prompt": "a star"}', "gone.jsonl, row 1: .*9.png does not exist"),
        ("gone.csv", "prompt,file_name\na star,", "gone.csv, row 1 must name a picture and its prompt"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(folder, tmp_path, name, text, line):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=line):
        pair(folder, str(tmp_path / name))


def test_pictures_that_cannot_be_read_are_named(configure, folder, tmp_path):
    (folder / "3.png").write_bytes((folder / "0.png").read_bytes()[:900])
    with pytest.raises(UsageError, match=r"3\.png is damaged"):
        load_picture(folder / "3.png")
    (folder / "3.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"3\.png is no picture"):
        pair(folder, None)
    with pytest.raises(UsageError, match="holds no picture"):
        pair(tmp_path, None)
    with pytest.raises(UsageError, match="images is needed"):
        check(configure("score"), tmp_path)


def test_a_picture_without_a_prompt_is_left_out_and_counted_unless_strict(configure, folder, tmp_path, capsys):
    save_png(torch.rand(3, 64, 64), folder / "3.png", {})
    save_png(torch.rand(3, 64, 64), folder / "4.png", {})
    (folder / "4.txt").write_text("a green ring")
    keys = (f"images={folder}", "rewards=clip", "device=cpu")
    run(configure("score", *keys), tmp_path / "scores")
    assert "1 of 5 pictures say no prompt and are not scored: 3.png" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "scores" / "scores.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [*PROMPTS, "a green ring"]
    with pytest.raises(UsageError, match=r"strict=true: 1 of 5 pictures say no prompt and are not scored: 3.png: give"):
        check(configure("score", *keys, "strict=true"), tmp_path / "more")
    for file in folder.glob("*.*"):
        file.unlink()
    save_png(torch.rand(3, 64, 64), folder / "3.png", {})
    with pytest.raises(UsageError, match=r"no picture says its prompt: give prompts.path="):
        check(configure("score", *keys), tmp_path / "more")


def test_a_table_of_any_format_names_the_pictures(folder, tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text(
        "File_Name,Prompt\n" + "".join(f'{i}.png,"{PROMPTS[i].replace(chr(34), chr(34) * 2)}"\n' for i in (2, 0))
    )
    assert [(one.name, prompt) for one, prompt in pair(folder, str(file)).pairs] == [
        ("2.png", PROMPTS[2]),
        ("0.png", PROMPTS[0]),
    ]


@pytest.mark.parametrize("column", ["file_name", "Filename", "path", "img"])
def test_a_table_names_pictures_by_any_of_the_usual_columns(folder, tmp_path, column):
    """Its rows stand in another order than the files; a picture that it does not name is counted."""
    file = tmp_path / "prompts.csv"
    file.write_text(f"{column},prompt\n2.png,a star\n0.png,a ring\n")
    paired = pair(folder, str(file))
    assert [(one.name, prompt) for one, prompt in paired.pairs] == [("2.png", "a star"), ("0.png", "a ring")]
    assert paired.told() == "1 of 3 pictures say no prompt and are not scored: 1.png"


def test_names_whose_numbers_and_letters_sort_apart_are_refused(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\nfour")
    (folder / "10.png").write_bytes((folder / "0.png").read_bytes())
    with pytest.raises(UsageError, match=r"by its letters 10.png comes where by its numbers 2.png does: fill the"):
        pair(folder, str(tmp_path / "prompts.txt"))
    for number in range(3):
        (folder / f"{number}.png").rename(folder / f"0{number}.png")
    assert [prompt for _, prompt in pair(folder, str(tmp_path / "prompts.txt")).pairs] == [
        "one",
        "two",
        "three",
        "four",
    ]


def test_every_format_that_data_sets_take_is_scored_and_hidden_files_are_not(folder):
    for file, suffix in zip(sorted(folder.glob("?.png")), (".TIFF", ".gif", ".jpg"), strict=True):
        with Image.open(file) as picture:
            picture.convert("RGB").save(file.with_suffix(suffix))
        file.with_suffix(".txt").write_text("a star")
        file.unlink()
    (folder / "._0.png").write_bytes(b"what a Mac leaves")
    assert [file.name for file, _ in pair(folder, None).pairs] == ["0.TIFF", "1.gif", "2.jpg"]
