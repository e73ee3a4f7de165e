"""Answers of understanding models: each becomes regions, nothing, or a fault with its reason; none does harm."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from textcraftor.captioning.advice import (
    EXAMPLE,
    MOST_ANSWER,
    MOST_REGIONS,
    Advice,
    advice_in,
    question,
    text_of,
)
from textcraftor.sampling.regions import Region

LIGHT = Region((0.0, 0.0, 1.0, 1.0), "soft light")
DOG = Region((0.25, 0.5, 0.5, 1.0), 'a "good" {dog}, [sitting]')
BOTH = text_of([LIGHT, DOG])
ENTRY = {"box": [0, 0, 1, 1], "prompt": "soft light"}


def entry(**changed: object) -> str:
    """A list of one entry in JSON."""
    return json.dumps([ENTRY | changed])


@pytest.mark.parametrize(
    ("answer", "regions"),
    [
        (BOTH, (LIGHT, DOG)),
        (
            f"Here is my advice:\n```json\n{json.dumps(json.loads(BOTH), indent=2)}\n```\nHope it [really] helps!",
            (LIGHT, DOG),
        ),
        (f"<think>[] or [{{'box'...}}]?</think>{BOTH}", (LIGHT, DOG)),
        (entry(strength=0.5), (Region((0.0, 0.0, 1.0, 1.0), "soft light", 0.5),)),
        (entry(reason="it is dark", prompt=" soft\n light "), (LIGHT,)),
        (json.dumps([ENTRY] * 20), (LIGHT,)),
        ('[{"box": [0, 0, 1, 1], "prompt": "soft\nlight"}]', (LIGHT,)),
        ("[]", ()),
        ("The picture is perfect as it is: [\n]", ()),
    ],
)
def test_advice_is_read_wherever_it_stands_in_an_answer(answer, regions):
    assert advice_in(answer) == Advice(regions)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("", "the answer is empty"),
        ("I like [1] it.", "no JSON list in the answer: I like [1] it."),
        ("[5, 6]", "no JSON list"),
        ("- [ ] add light", "no JSON list"),
        (BOTH[:-20], "its JSON is broken or cut short"),
        (BOTH.replace('"box"', "'box'"), "its JSON is broken"),
        (json.dumps(ENTRY), "must hold one JSON list, not an object"),
        (json.dumps({"advice": [ENTRY]}), "not an object"),
        (f"{BOTH} or rather {BOTH}", "not 2 lists or objects"),
        (f"[] {BOTH}", "not 2 lists or objects"),
        (json.dumps([ENTRY, 5]), "an entry must be an object with a box and a prompt, not 5"),
        (json.dumps([{"box": [0, 0, 1, 1]}]), "an entry must be an object with a box and a prompt"),
        (entry(prompt=["a"]), "an entry must be an object"),
        (entry(prompt="  "), "is empty"),
        (entry(prompt="x" * 2000), "a prompt of 2,000 characters, more than 1,000"),
        (entry(prompt="a\u001b[2J"), "has characters that no text can hold"),
        (entry(prompt="\ud800"), "has characters that no text can hold"),
        (entry(box=[0, 0, 1]), "must be four numbers in [0, 1]"),
        (entry(box=[]), "must be four numbers"),
        (entry(box=None), "must be four numbers"),
        (entry(box="exit()"), "must be four numbers"),
        (entry(box=[True, 0, 1, 1]), "must be four numbers"),
        (entry(box=[0, 0, 1.2, 1]), "must be four numbers in [0, 1]"),
        (entry(box=[0, 0, 1000, 1000]), "must be four numbers in [0, 1]"),
        (entry(box=[0.5, 0, 0.5, 1]), "is empty"),
        (entry(box=[0.5, 0, 0.2, 1]), "is empty"),
        (entry(box=[0.5, 0, 0.501, 1]), "less than 1% of the picture's side"),
        (entry(strength=-1), "strength=-1"),
        (entry(strength=None), "strength=null"),
        (entry(strength=1e6), "strength=1000000 is more than 10"),
        (entry().replace("1]", "NaN]"), "nan is no number that can be meant"),
        (entry().replace("1]", "1e999]"), "inf is no number that can be meant"),
        (entry().replace("1]", f"{'9' * 4000}]"), "a whole number of many digits is no number"),
        (entry().replace("1]", f"{'9' * 5000}]"), "its JSON is broken"),
        (
            json.dumps([ENTRY | {"prompt": f"light {number}"} for number in range(9)]),
            f"9 regions, more than {MOST_REGIONS}",
        ),
        (text_of(EXAMPLE), "repeats the example"),
        ("x" * (MOST_ANSWER + 1), "characters, more than 20,000"),
    ],
)
def test_an_answer_that_cannot_be_used_is_a_fault_with_its_reason(answer, fault):
    advice = advice_in(answer)
    assert fault in advice.fault
    assert advice.regions == ()


@pytest.mark.parametrize(
    "part", ["[", "[{", "[ ", '[{"a":', '{"', "[]", "[1,", '{"a":{', "```json\n", "</think>", '[{"\\']
)
def test_hostile_answers_end_at_once_in_one_short_line(part):
    """As long as they may be and longer: nested, broken and repeated."""
    for length in (MOST_ANSWER, 2 * MOST_ANSWER):
        fault = advice_in(part * (length // len(part))).fault
        assert fault
        assert len(fault) < 250
        assert fault.isprintable()


def test_how_boxes_are_written_is_told_and_never_guessed():
    """Thousandths and tenths as whole numbers; shares of 1 under another scale are no box."""
    assert advice_in(entry(box=[0, 250, 1000, 500]), 1000).regions[0].box == (0, 0.25, 1, 0.5)
    assert advice_in(entry(box=[0, 2, 10, 5]), 10).regions[0].box == (0, 0.2, 1, 0.5)
    for box in ([0, 0, 0.5, 1], [0, 0, 1001, 1000], [0, 0, -1, 5], [0, 0, "5", 9], [0, 0, True, 9]):
        assert "must be four whole numbers from 0 to 1000" in advice_in(entry(box=box), 1000).fault
    assert "1000 is a whole side" in advice_in(entry(box=[0, 0, 1, 1]), 1000).fault


@pytest.mark.parametrize(("box_scale", "box"), [(1, (0.123, 0.45, 0.679, 0.9)), (10, (0.1, 0.4, 0.7, 0.9))])
def test_what_is_written_is_read_back(box_scale, box):
    """Boxes grow to the next number that can be told; prompts stay letter by letter."""
    region = Region((0.1234, 0.45, 0.6781, 0.9), 'a "sign" that says {"box": []}, été \\ 日本', 0.5)
    assert advice_in(text_of([region, LIGHT], box_scale), box_scale).regions == (replace(region, box=box), LIGHT)


def test_a_question_holds_the_prompt_as_it_is():
    """Also where it looks like a part that is filled in, or like JSON."""
    prompt = 'a {prompt} "{example}" of {0} % \\ {{most}} [{"box": []}]'
    for box_scale, whole in ((1, "[0, 0, 1, 1] is the whole picture"), (1000, "[0, 0, 1000, 1000] is the whole")):
        text = question(prompt, box_scale)
        assert text.endswith(f"The prompt: {prompt}")
        assert whole in text
        assert text_of(EXAMPLE, box_scale) in text
        assert "{" not in text.removesuffix(prompt).replace(text_of(EXAMPLE, box_scale), "")
