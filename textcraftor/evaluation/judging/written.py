"""TIFA's questions, written by a language model from the caption alone, and checked by answering them from it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from textcraftor.captioning.advice import MOST_ANSWER, short
from textcraftor.captioning.understanding import ask
from textcraftor.evaluation.judging.base import Answer, Asked, Keep, Question, content_of
from textcraftor.evaluation.judging.vlm import OPTIONS, Choices, Load

CATEGORIES = (
    *("object", "human", "animal", "food", "activity", "attribute", "counting", "color", "material", "spatial"),
    *("location", "shape", "other"),
)
JOINED = {"animal": "animal/human", "human": "animal/human"}  # as in the published questions
MOST_QUESTIONS = 40  # about one caption
ENTRY = re.compile(
    r"About [^\n]*?\((?P<kind>[\w/ ]+)\):"
    r"|Q: *(?P<question>.+)\n+Choices: *(?P<choices>.+)\n+A: *(?P<answer>.+)"
)
WRITE = """Write multiple-choice questions by which somebody who sees a picture, and not its description, can check \
that the picture shows what the description says. First name the kind of each concept in the description, one of {}; \
then write one or two questions about each concept. Each question has two to four choices, and one of them is the \
answer by the description. Use exactly this form:

Description: A photo of three red dogs.
About dogs (animal):
Q: are there dogs?
Choices: yes, no
A: yes
About three (counting):
Q: how many dogs are in the picture?
Choices: 1, 2, 3, 4
A: 3
About red (color):
Q: what color are the dogs?
Choices: red, black, white, yellow
A: red

Description: """.format(", ".join(CATEGORIES))
FROM_CAPTION = "Description: {}\nAnswer a question by this description alone. {}"
NOTHING = ()  # no picture is shown


class WrittenChoices(Choices):
    """TIFA where no file gives the questions: the model that answers them writes them first, without a picture. A
    question is kept where the model, given the caption in place of a picture, gives the answer that it wrote."""

    def __init__(self, understander: Load, show_choices: bool = True) -> None:
        super().__init__(understander, {}, show_choices)

    def check(self, prompts: Sequence[str]) -> None:
        """Any prompt can be asked about."""

    def prepare(self, prompts: Sequence[str], keep: Keep) -> None:
        """Write and check the questions about prompts that have none yet."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.by_prompt]
        writing = [self._about(prompt, Question(WRITE + prompt, "", ())) for prompt in new]
        for prompt, answer in zip(new, keep(writing, self._write), strict=True):
            written = [] if answer.fault else questions_in(answer.text)
            checking = [self._about(prompt, from_caption(prompt, one)) for one in written]
            checked = keep(checking, self.answers) if checking else []
            self.by_prompt[prompt] = [one for one, reply in zip(written, checked, strict=True) if reply.value == 1]

    def _about(self, prompt: str, question: Question) -> Asked:
        return Asked(NOTHING, content_of(NOTHING), prompt, question)

    def _write(self, asked: Sequence[Asked]) -> list[Answer]:
        """What the model writes; asked again where no question can be read."""
        texts = [one.question.text for one in asked]
        return ask(self.model.answers, [NOTHING] * len(texts), texts, lambda _, text: _readable(text), self.model.tries)

    def rows(self) -> list[dict]:
        """The questions in TIFA's layout, which `judge.questions=` reads."""
        return [
            {"caption": prompt, "question": one.text, "choices": list(one.choices), "answer": one.expected}
            | {"element_type": one.category}
            for prompt, questions in self.by_prompt.items()
            for one in questions
        ]


def from_caption(prompt: str, question: Question) -> Question:
    """A question as it is asked about a caption instead of a picture."""
    text = FROM_CAPTION.format(prompt, OPTIONS.format(question.text, ", ".join(question.choices)))
    return Question(text, question.expected, question.choices)


def questions_in(text: str) -> list[Question]:
    """The distinct questions that a model wrote in TIFA's form, without those of unknown kinds or whose answer is not
    among their choices."""
    kind, by_text = "", dict[str, Question]()
    for entry in ENTRY.finditer(text[:MOST_ANSWER]):
        if entry["kind"]:
            kind = entry["kind"].strip().lower()
        elif kind in CATEGORIES and len(by_text) < MOST_QUESTIONS:
            choices = tuple(dict.fromkeys(one.strip() for one in entry["choices"].split(",") if one.strip()))
            question, answer = entry["question"].strip(), entry["answer"].strip()
            if answer in choices and len(choices) > 1:
                by_text.setdefault(question, Question(question, answer, choices, JOINED.get(kind, kind)))
    return [*by_text.values()]


def _readable(text: str) -> Answer:
    reply = text.rpartition("</think>")[2].strip()[:MOST_ANSWER]
    if questions_in(reply):
        return Answer(reply, 1.0)
    return Answer(reply, fault=f"no question in TIFA's form: {short(reply)}")
