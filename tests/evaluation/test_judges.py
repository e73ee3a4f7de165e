"""Judges: the published rules on hand-made answers and detections, and files that lack a field are refused."""

from __future__ import annotations

import gzip
import json
import math

import pytest
from PIL import Image

from textcraftor.errors import UsageError
from textcraftor.evaluation.judging import layouts
from textcraftor.evaluation.judging.answers import FILE, Answers
from textcraftor.evaluation.judging.base import Answer, Asked, Question, content_of
from textcraftor.evaluation.judging.chunks import simple_chunks
from textcraftor.evaluation.judging.geneval import Detection, confident, relations, verdict
from textcraftor.evaluation.judging.judged import Picture, ask, judged, table_of
from textcraftor.evaluation.judging.layouts import read_questions
from textcraftor.evaluation.judging.pairwise import Pairwise, scores, strengths
from textcraftor.evaluation.judging.reading import answer_in, choice_in
from textcraftor.evaluation.judging.vlm import Choices, Chunks, Dependent, Likelihood, Verdict, counted
from textcraftor.evaluation.judging.written import WRITE, WrittenChoices, questions_in

RED, BLUE = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
TIFA = [
    {"id": "a", "caption": "two cats", "question": "are there cats?", "choices": ["yes", "no"], "answer": "yes"}
    | {"element_type": "animal/human", "element": "cats"},
    {"id": "a", "caption": "two cats", "question": "how many cats?", "choices": ["1", "2"], "answer": "2"}
    | {"element_type": "counting", "element": "two"},
    {"id": "b", "caption": "a dog", "question": "is it a dog?", "choices": ["yes", "no"], "answer": "yes"}
    | {"element_type": "animal/human", "element": "dog"},
]
DPG = """item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,\
question_natural_language
7,"a red car, parked",,1,0,entity,whole,entity - whole (car),Is there a car?
7,"a red car, parked",,2,1,attribute,color,"attribute - color (car, red)",Is the car red?
7,"a red car, parked",,3,"1, 2",relation,state,relation (car),Is the red car parked?
"""
GENEVAL = [
    {"tag": "counting", "include": [{"class": "bird", "count": 2}], "exclude": [{"class": "bird", "count": 3}]}
    | {"prompt": "a photo of two birds"},
    {"tag": "color_attr", "include": [{"class": "car", "count": 1, "color": "red"}], "prompt": "a photo of a red car"},
    {
        "tag": "position",
        "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a cat left of a dog",
    },
]


class Told:
    """A model that answers by a function of the pictures and the question, and counts."""

    name, tries = "told", 3

    def __init__(self, answer) -> None:
        self.answer, self.asked = answer, []

    def answers(self, pictures, questions, number):
        self.asked += [(question, number) for question in questions]
        return [self.answer(*one, number) for one in zip(pictures, questions, strict=True)]

    def probabilities(self, pictures, questions, words):
        self.asked += [(question, 0) for question in questions]
        return [
            [self.answer(picture, question, word) for word in words]
            for picture, question in zip(pictures, questions, strict=True)
        ]


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def result(judge, prompts, answers) -> dict:
    """A judge's table over one red picture of each prompt."""
    pictures = [Picture(f"{index}.png", prompt, lambda: RED) for index, prompt in enumerate(prompts)]
    ask(judge, pictures, answers, batch_size=2, quiet=True)
    found = judged(judge, pictures, answers)
    return {
        "table": table_of(judge, found),
        "scores": [judge.figures(one.questions, one.values)[judge.name] for one in found],
    }


@pytest.mark.parametrize(
    ("text", "choices", "chosen"),
    [
        ("Yes.", ("yes", "no"), "yes"),
        ("No, it is yes-like.", ("yes", "no"), "no"),
        ("There are three of them", ("1", "2", "3"), "3"),
        ("an ice cream truck", ("truck", "ice cream truck"), "ice cream truck"),
        ("surfr", ("surfer", "diver"), "surfer"),
        ("not correct", ("correct", "incorrect"), None),
        ("correct or incorrect", ("correct", "incorrect"), None),
        ("I cannot say", ("yes", "no"), None),
        ("", ("yes", "no"), None),
    ],
)
def test_an_answer_is_one_choice_or_none(text, choices, chosen):
    assert choice_in(text, choices) == chosen


def test_a_verdict_stands_in_the_last_line_behind_its_reasons():
    told = "<think>incorrect</think>It shows a correct car.\nThe wheel is missing.\n\n**Incorrect**"
    assert answer_in(told, Question("?"), reasons=True).value == 0
    assert answer_in("Incorrect at first.\nCorrect.", Question("?"), reasons=True).value == 1
    assert answer_in("correct\nas far as I see", Question("?"), reasons=True).value is None


def test_nonsense_is_asked_again_and_then_not_answered(tmp_path):
    """Neither right nor wrong: it lowers no mean, and its share is told."""
    model = Told(lambda picture, question, number: "correct" if "dog" in question else "hm" * 9)
    told = result(Verdict(lambda: model), ["a dog", "a cat"], Answers(tmp_path, "s"))
    assert [number for question, number in model.asked if "cat" in question] == [0, 1, 2]
    assert told["table"]["overall"] == 1.0
    assert told["table"]["unanswered"] == 0.5
    assert math.isnan(told["scores"][1])
    rows = [json.loads(line) for line in (tmp_path / "answers.0.jsonl").read_text().split("\n") if line]
    assert [(row["prompt"], row["value"]) for row in rows] == [("a dog", 1.0), ("a cat", None)]
    assert rows[1]["fault"].startswith("none of correct, incorrect: hmhm")


def test_nothing_is_asked_twice_of_the_same_picture_question_and_settings(tmp_path):
    """Resumed after a cut line, taken over from another folder; another picture or setting asks anew."""
    model = Told(lambda *_: "correct")
    judge, picture = Verdict(lambda: model), Picture("a.png", "a dog", lambda: RED)
    first = tmp_path / "first"
    ask(judge, [picture], Answers(first, "s"), 1, quiet=True)
    ask(judge, [picture, Picture("copy.png", "a dog", lambda: RED.copy())], Answers(first, "s"), 1, quiet=True)
    assert len(model.asked) == 1
    with (first / "answers.0.jsonl").open("a") as file:
        file.write('\n{"key": "cut')
    answers = Answers(first, "s")
    answers.finish([answers.key(one) for one in ()])
    assert [file.name for file in first.iterdir()] == [FILE]
    ask(judge, [picture], Answers(tmp_path / "second", "s", reuse=[first]), 1, quiet=True)
    assert len(model.asked) == 1
    ask(judge, [picture], Answers(tmp_path / "third", "other", reuse=[first / FILE]), 1, quiet=True)
    ask(judge, [Picture("a.png", "a dog", lambda: BLUE)], Answers(first, "s"), 1, quiet=True)
    assert len(model.asked) == 3
    with pytest.raises(UsageError, match=r"answers=.*gone holds no answers of a judge"):
        Answers(first, "s", reuse=[tmp_path / "gone"])


def test_tifa_is_the_mean_of_captions_and_each_kind_that_of_its_questions(tmp_path):
    """As the published script: 1/2 and 1 make 3/4, and of two questions about animals both are right."""
    (tmp_path / "qa.json").write_text(json.dumps(TIFA))
    by_prompt = read_questions(str(tmp_path / "qa.json"), layouts.tifa, "TIFA")
    model = Told(lambda picture, question, number: "1" if "how many" in question else "Yes.")
    told = result(Choices(lambda: model, by_prompt), ["two cats", "a dog"], Answers(tmp_path, "s"))
    assert told["scores"] == [0.5, 1.0]
    assert told["table"]["overall"] == 0.75
    means = {name: (row["mean"], row["questions"]) for name, row in told["table"]["categories"].items()}
    assert means == {"animal/human": (1.0, 2), "counting": (0.0, 1)}
    assert model.asked[1][0] == "how many cats?\nAnswer with one of these alone: 1, 2."
    with pytest.raises(UsageError, match=r"no question about 1 of 2 prompts, the first 'a bird'"):
        Choices(lambda: model, by_prompt).check(["a dog", "a bird"])


def test_a_dpg_question_counts_only_where_its_parents_are_answered_yes(tmp_path):
    """A chain falls from its first no; categories count answers as given; a missing one takes nothing from others."""
    with gzip.open(tmp_path / "dpg.csv.gz", "wt") as file:
        file.write(DPG)
    by_prompt = read_questions(str(tmp_path / "dpg.csv.gz"), layouts.dpg, "DPG")
    questions = by_prompt["a red car, parked"]
    assert [one.after for one in questions] == [(), (0,), (0, 1)]
    assert counted(questions, [0, 1, 1]) == [0, 0, 0]
    assert counted(questions, [1, 0, 1]) == [1, 0, 0]
    assert counted(questions, [1, 1, 1]) == [1, 1, 1]
    assert counted(questions, [None, 1, 1]) == [None, 1, 1]
    model = Told(lambda picture, question, number: "no" if "a car" in question else "yes")
    told = result(Dependent(lambda: model, by_prompt), ["a red car, parked"], Answers(tmp_path, "s"))
    assert told["scores"] == [0.0]
    assert {name: row["mean"] for name, row in told["table"]["categories"].items()} == {
        "entity": 0.0,
        "attribute": 1.0,
        "relation": 1.0,
    }


def test_vqascore_is_the_probability_and_b_vqa_the_product_over_noun_chunks(tmp_path):
    """B-VQA's is P(yes) / (P(yes) + P(no)), as its published code has it."""
    chances = {"yes": 0.3, "no": 0.1, "Yes": 0.4}
    model = Told(lambda picture, question, word: chances[word] if "bowl" in question else 0.2)
    told = result(Likelihood(lambda: model, 'Is it "{}"?', "Yes"), ["a bowl"], Answers(tmp_path / "a", "s"))
    assert told["scores"] == [0.4]
    judge = Chunks(lambda: model, "{}?", "yes", simple_chunks)
    told = result(judge, ["a green bench and a blue bowl"], Answers(tmp_path / "b", "s"))
    assert told["scores"] == [pytest.approx(0.5 * 0.75)]
    assert [question for question, _ in model.asked[1:]] == ["a green bench?", "a blue bowl?"]
    assert simple_chunks("a girl on the top of a frog") == ["a girl", "a frog"]


def test_a_pair_is_asked_in_both_orders_and_a_disagreement_is_a_tie(tmp_path):
    """One who sees prefers red twice, one who always says `first` ties; silence is no vote."""

    def answer(pictures, question, number):
        if "silent" in question:
            return "..."
        sees = "cat" in question
        return "Because.\nfirst" if not sees or pictures[0].getpixel((0, 0)) == (255, 0, 0) else "second"

    model = Told(answer)
    prompts = ["a cat", "a dog", "a cat again", "silent"]
    pairs = [
        (prompt, *shown, "a.png") for prompt, shown in zip(prompts, [(BLUE, RED)] * 2 + [(RED, BLUE)] * 2, strict=True)
    ]
    answers = Answers(tmp_path, "s")
    found = scores(Pairwise(lambda: model), pairs, answers, batch_size=2)
    assert found == [1.0, 0.5, 0.0, None]
    told = strengths(prompts, found)
    assert {name: told[name] for name in ("wins", "ties", "losses", "unanswered", "share")} == {
        "wins": 1,
        "ties": 1,
        "losses": 1,
        "unanswered": 1,
        "share": 0.5,
    }
    count = len(model.asked)
    assert scores(Pairwise(lambda: model), pairs, answers, batch_size=9) == found
    assert len(model.asked) == count


def test_a_model_writes_tifas_questions_and_keeps_those_that_it_can_answer_from_the_caption(tmp_path):
    """No picture is shown for that; what was written is asked about the picture, and nothing is written twice."""
    written = "About dogs (animal):\nQ: are there dogs?\nChoices: yes, no\nA: yes\n"
    written += "About x (thing):\nQ: x?\nChoices: a, b\nA: a\n"
    written += "About three (counting):\nQ: how many?\nChoices: 2, 3\nA: 3"

    def answer(pictures, question, number):
        if question.startswith("Write"):
            return written
        from_caption = question.startswith("Description")
        assert (len(pictures) == 0) if from_caption else (pictures is RED)
        return ("2" if from_caption else "3") if "how many" in question else "yes"

    model = Told(answer)
    judge = WrittenChoices(lambda: model)
    told = result(judge, ["three dogs"], Answers(tmp_path, "s"))
    assert told["table"]["categories"].keys() == {"animal/human"}
    assert judge.rows() == [
        {"caption": "three dogs", "question": "are there dogs?", "choices": ["yes", "no"], "answer": "yes"}
        | {"element_type": "animal/human"}
    ]
    count = len(model.asked)
    assert result(WrittenChoices(lambda: model), ["three dogs"], Answers(tmp_path, "s")) == told
    assert len(model.asked) == count
    assert len(questions_in(WRITE)) == 3, "the form that is asked for is the form that is read"


def box(left, top, right, bottom, confidence=0.95) -> Detection:
    return Detection((left, top, right, bottom), confidence)


def test_genevals_objects_are_confident_counted_and_coloured():
    """Counting needs .9, other tasks .3; one bird too many is wrong; the colour is that of the most confident."""
    counting, colored, _ = GENEVAL
    birds = [box(0, 0, 9, 9, confidence) for confidence in (0.95, 0.5, 0.92)]
    for count, right in ((1, False), (2, True), (3, False)):
        seen = confident({"bird": [box(0, 0, 9, 9)] * count}, "counting", 0.3, 0.9)
        assert verdict(counting, seen, None)[0] == right
    assert verdict(counting, confident({"bird": birds}, "counting", 0.3, 0.9), None)[0]
    assert len(confident({"bird": birds}, "colors", 0.3, 0.9)["bird"]) == 3
    assert len(confident({"bird": birds * 9}, "colors", 0.3, 0.9)["bird"]) == 16
    cars = {"car": [box(0, 0, 9, 9, 0.9), box(5, 5, 9, 9, 0.4)]}
    for colors, right in (({0.9: "red", 0.4: "blue"}, True), ({0.9: "blue", 0.4: "red"}, False)):
        held, faults = verdict(
            colored, cars, lambda name, found, colors=colors: [colors[one.confidence] for one in found]
        )
        assert held == right
        assert right or faults == ["expected red car>=1, found blue"]
    assert verdict(colored, {}, None) == (False, ["expected car>=1, found 0"])


def test_genevals_positions_count_from_a_tenth_of_both_sizes_on():
    """And from half of the distance in a direction on: a diagonal is both, a touch sideways neither."""
    dog = box(50, 50, 60, 60)
    assert relations(box(20, 50, 30, 60), dog) == {"left of"}
    assert relations(box(50, 80, 60, 90), dog) == {"below"}
    assert relations(box(20, 20, 30, 30), dog) == {"left of", "above"}
    assert relations(box(51, 50, 61, 60), dog) == set()
    assert relations(box(80, 55, 90, 65), dog) == {"right of"}
    _, _, position = GENEVAL
    cat = {"cat": [box(20, 50, 30, 60)]}
    assert verdict(position, cat | {"dog": [dog]}, None) == (True, [])
    wrong = verdict(position, {"cat": [box(80, 50, 90, 60)], "dog": [dog]}, None)
    assert wrong == (False, ["expected cat left of target, found right of"])
    assert verdict(position, cat, None)[1] == ["expected dog>=1, found 0", "no target for cat to be left of"]


@pytest.mark.parametrize(
    ("read", "text", "line"),
    [
        (
            layouts.tifa,
            json.dumps([TIFA[0] | {"answer": "maybe"}]),
            r"question 1: the answer maybe is none of its choices",
        ),
        (layouts.tifa, json.dumps([{"caption": "a"}]), r"question 1 lacks the field question: this layout has caption"),
        (layouts.tifa, "{}", r"must be a list"),
        (layouts.tifa, "[]", r"holds no question: give TIFA"),
        (layouts.dpg, DPG.replace("dependency,", "parents,"), r"row 1 lacks the field dependency"),
        (layouts.dpg, DPG.replace('"1, 2"', "9"), r"row 3: dependency=9 is no question of this prompt"),
        (layouts.dpg, DPG.replace(",,1,0,", ",,one,0,"), r"row 1: proposition_id=one must be a whole number"),
        (
            layouts.geneval,
            lines([{"prompt": "a"}]),
            r"line 1 lacks the field tag: this layout has tag, prompt, include",
        ),
        (layouts.geneval, lines([GENEVAL[0] | {"include": [{"class": "bird"}]}]), r"include.0 lacks the field count"),
        (
            layouts.geneval,
            lines([GENEVAL[0] | {"include": [{"class": "a", "count": 1, "color": "beige"}]}]),
            r"color=beige must be one of red,",
        ),
        (
            layouts.geneval,
            lines([GENEVAL[0] | {"include": [{"class": "a", "count": 1, "position": ["left of", 0]}]}]),
            r"position=.* must be one of left of, right of, above, below, and the number of an earlier clause",
        ),
    ],
)
def test_a_file_that_lacks_a_field_is_refused_with_its_place(tmp_path, read, text, line):
    (tmp_path / "questions").write_text(text)
    with pytest.raises(UsageError, match=line):
        read_questions(str(tmp_path / "questions"), read, "TIFA")


def test_genevals_task_means_make_its_overall_figure(tmp_path):
    """Not the mean over pictures, where the tasks have different numbers of prompts."""

    class Counted(Verdict):
        by_task = True

        def questions(self, prompt):
            return [Question(prompt, category=prompt.split()[0])]

    model = Told(lambda picture, question, number: "correct" if "one" in question else "incorrect")
    told = result(Counted(lambda: model), ["one a", "one b", "one c", "two a"], Answers(tmp_path, "s"))
    assert told["table"]["overall"] == 0.5


def test_an_answer_belongs_to_pixels_not_to_files():
    asked = Asked(RED, content_of(RED), "a dog", Question("?"))
    assert content_of(RED.convert("RGBA")) == asked.content
    assert content_of(RED.resize((4, 16))) != asked.content
    assert content_of([RED, BLUE]) != content_of([BLUE, RED])
    assert Answer("x").value is None
