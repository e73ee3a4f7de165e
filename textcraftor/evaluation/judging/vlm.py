"""Judges that ask a model which answers about pictures: an image-text-to-text model, or one behind a server.

`drawbench` asks as DALL-E 3's authors did (Betker et al. 2023, "Improving Image Generation with Better Captions"):
the original prompt, reasons, and in the last line correct or not. `tifa` (Hu et al., arXiv 2303.11897) and `dpg` (Hu et
al., arXiv 2403.05135) ask questions with choices. `vqascore` (Lin et al., arXiv 2404.01291, eq. 1) and `b_vqa` (Huang
et al., arXiv 2307.06350) read how likely the answer yes is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from textcraftor.captioning.understanding import Answering, ask
from textcraftor.errors import UsageError
from textcraftor.evaluation.judging.base import (
    YES_NO,
    Answer,
    Asked,
    Keep,
    Question,
    mean_of,
    named,
)
from textcraftor.evaluation.judging.chunks import CHUNKERS, MOST_CHUNKS
from textcraftor.evaluation.judging.layouts import ByPrompt
from textcraftor.evaluation.judging.reading import answer_in

VERDICT = """You judge whether a picture shows what a caption says. Compare the picture below with the caption. First \
say what the picture shows of the caption, and what is wrong or missing: give your reasons. The picture is correct if \
all that the caption says can be seen in it; how beautiful it is does not count. In the last line write one word \
alone, correct or incorrect.

The caption: {}"""
OPTIONS = "{}\nAnswer with one of these alone: {}."
Load = Callable[[], Answering]


class VLM:
    """What these judges share.

    Args:
        understander: loads the model.
    """

    name: str
    by_task = False

    def __init__(self, understander: Load) -> None:
        self._load = understander

    @cached_property
    def model(self) -> Any:
        """The model, loaded when it is first asked."""
        model = self._load()
        if not hasattr(model, "answers"):
            raise UsageError(f"understander {model.name} answers no questions: choose understander=qwen_vl or endpoint")
        return model

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that there are no questions about."""

    def prepare(self, prompts: Sequence[str], keep: Keep) -> None:
        """Questions are known."""

    def answers(self, asked: Sequence[Asked]) -> list[Answer]:
        """Each answer as `read` reads it; one that cannot be read is asked for again, and then has a fault."""
        shown, questions = [one.shown for one in asked], [one.question for one in asked]
        texts = [one.text for one in questions]
        return ask(
            self.model.answers, shown, texts, lambda place, text: self.read(text, questions[place]), self.model.tries
        )

    def read(self, text: str, question: Question) -> Answer:
        return answer_in(text, question)

    def figures(self, questions: Sequence[Question], values: Sequence[float | None]) -> dict[str, float]:
        return {**named(self.name, self.score(questions, values), values)}

    def score(self, questions: Sequence[Question], values: Sequence[float | None]) -> float:
        """The mean of what was answered."""
        return mean_of(values)


class Verdict(VLM):
    """DALL-E 3's automatic DrawBench: does the picture show the prompt, with reasons. 1 or 0."""

    name = "drawbench"

    def questions(self, prompt: str) -> list[Question]:
        return [Question(VERDICT.replace("{}", prompt))]

    def read(self, text: str, question: Question) -> Answer:
        return answer_in(text, question, reasons=True)


class Choices(VLM):
    """Questions with choices, by prompt: TIFA's.

    Args:
        by_prompt: the questions.
        show_choices: ask with the choices; False asks the bare question, for models that know no others.
    """

    name = "tifa"

    def __init__(self, understander: Load, by_prompt: ByPrompt, show_choices: bool = True) -> None:
        super().__init__(understander)
        self.by_prompt, self.show_choices = by_prompt, show_choices

    def check(self, prompts: Sequence[str]) -> None:
        if missing := [prompt for prompt in prompts if prompt not in self.by_prompt]:
            raise UsageError(
                f"judge.questions has no question about {len(missing)} of {len(prompts)} prompts, the first "
                f"{missing[0][:60]!r}: give the file of these prompts"
            )

    def questions(self, prompt: str) -> list[Question]:
        return [self._as_asked(one) for one in self.by_prompt.get(prompt, [])]

    def _as_asked(self, one: Question) -> Question:
        text = OPTIONS.format(one.text, ", ".join(one.choices)) if self.show_choices else one.text
        return Question(text, one.expected, one.choices, one.category, one.after)


class Dependent(Choices):
    """DPG-Bench: yes or no; a question whose parent is answered no counts as no. Categories count answers as they are,
    as in the published script."""

    name = "dpg"

    def score(self, questions: Sequence[Question], values: Sequence[float | None]) -> float:
        return mean_of(counted(questions, values))


def counted(questions: Sequence[Question], values: Sequence[float | None]) -> list[float | None]:
    """The values with dependencies applied: 0 where a question that this one depends on has 0. A missing answer
    changes no others."""
    scores = list(values)
    for place, question in enumerate(questions):
        if scores[place] is not None and any(scores[parent] == 0 for parent in question.after):
            scores[place] = 0.0
    return scores


class Likelihood(VLM):
    """VQAScore: P(answer) over the whole vocabulary, of the answer's first token, in [0, 1].

    Args:
        question: with {} where the prompt goes.
        answer: how the wanted answer begins.
    """

    name = "vqascore"

    def __init__(self, understander: Load, question: str, answer: str) -> None:
        super().__init__(understander)
        if question.count("{}") != 1 or not answer.strip():
            raise UsageError(f"judge.question={question} must hold {{}} once, and judge.answer={answer} a word")
        self.question, self.answer = question, answer

    def questions(self, prompt: str) -> list[Question]:
        return [Question(self.question.replace("{}", prompt), self.answer, ())]

    def answers(self, asked: Sequence[Asked]) -> list[Answer]:
        probabilities = self._probabilities(asked, [self.answer])
        return [Answer(f"P({self.answer})={yes:.4f}", yes) for (yes,) in probabilities]

    def _probabilities(self, asked: Sequence[Asked], words: Sequence[str]) -> list[list[float]]:
        return self.model.probabilities([one.shown for one in asked], [one.question.text for one in asked], words)


class Chunks(Likelihood):
    """B-VQA: P(yes) / (P(yes) + P(no)) of "{chunk}?" for at most 8 noun chunks of the prompt, multiplied.

    Args:
        chunker: finds noun chunks, see `chunks`.
    """

    name = "b_vqa"

    def __init__(self, understander: Load, question: str, answer: str, chunker: Callable[[str], list[str]]) -> None:
        super().__init__(understander, question, answer)
        self.chunker = chunker
        self.other = YES_NO[1].capitalize() if answer[:1].isupper() else YES_NO[1]

    def questions(self, prompt: str) -> list[Question]:
        texts = [self.question.replace("{}", chunk) for chunk in self.chunker(prompt)[:MOST_CHUNKS]]
        return [Question(text, self.answer, ()) for text in dict.fromkeys(texts)]

    def answers(self, asked: Sequence[Asked]) -> list[Answer]:
        return [self._answer(*pair) for pair in self._probabilities(asked, [self.answer, self.other])]

    def _answer(self, yes: float, no: float) -> Answer:
        text = f"P({self.answer})={yes:.4f}, P({self.other})={no:.4f}"
        if yes + no <= 0:
            return Answer(text, fault=f"neither {self.answer} nor {self.other} is likely at all")
        return Answer(text, yes / (yes + no))

    def score(self, questions: Sequence[Question], values: Sequence[float | None]) -> float:
        """The product; NaN where a chunk is not answered."""
        return math.prod(math.nan if value is None else value for value in values) if values else math.nan


def chunker_of(name: str) -> Callable[[str], list[str]]:
    """What `judge.chunks` names."""
    if name not in CHUNKERS:
        raise UsageError(f"judge.chunks={name} must be one of {', '.join(CHUNKERS)}")
    return CHUNKERS[name]()
