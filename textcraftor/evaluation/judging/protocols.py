"""What `judge=vlm` asks, by the name of the protocol."""

from __future__ import annotations

from textcraftor.config.judging import PROTOCOLS
from textcraftor.errors import UsageError
from textcraftor.evaluation.judging import layouts
from textcraftor.evaluation.judging.pairwise import Pairwise
from textcraftor.evaluation.judging.vlm import VLM, Choices, Chunks, Dependent, Likelihood, Load, Verdict, chunker_of
from textcraftor.evaluation.judging.written import WrittenChoices

# Published questions, with {} where the prompt or its chunk goes, and the wanted answer.
VQASCORE = ('Does this figure show "{}"? Please answer yes or no.', "Yes")
B_VQA = ("{}?", "yes")


def load(
    protocol: str,
    understander: Load,
    questions: str | None = None,
    show_choices: bool = True,
    question: str | None = None,
    answer: str | None = None,
    chunks: str = "simple",
) -> VLM:
    """The judge of a protocol; its files are read, its model is not loaded yet.

    Args:
        protocol: one of `PROTOCOLS`.
        understander: loads the model.
        questions: the published file of tifa's or dpg's questions; null lets the model write TIFA's.
        show_choices: of tifa and dpg: ask with the choices.
        question, answer: of vqascore and b_vqa; null as published.
        chunks: of b_vqa: simple, or spacy as published.

    Raises:
        UsageError: another protocol, or a file that lacks a field.
    """
    match protocol:
        case "drawbench":
            return Verdict(understander)
        case "pairwise":
            return Pairwise(understander)
        case "tifa" if questions is None:
            return WrittenChoices(understander, show_choices)
        case "tifa":
            what = "TIFA's question_answers.json, or null: the model writes questions"
            return Choices(understander, layouts.read_questions(questions, layouts.tifa, what), show_choices)
        case "dpg":
            by_prompt = layouts.read_questions(questions, layouts.dpg, "DPG-Bench's dpg_bench.csv, by suite=dpg")
            return Dependent(understander, by_prompt, show_choices)
        case "vqascore":
            return Likelihood(understander, question or VQASCORE[0], answer or VQASCORE[1])
        case "b_vqa":
            return Chunks(understander, question or B_VQA[0], answer or B_VQA[1], chunker_of(chunks))
    raise UsageError(f"judge.protocol={protocol} must be one of {', '.join(PROTOCOLS)}")
