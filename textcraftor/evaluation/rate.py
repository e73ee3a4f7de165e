"""`textcraftor rate`: a page on which people say which of two pictures is better, or how good one is."""

from __future__ import annotations

import html
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from textcraftor.config.words import nearest
from textcraftor.errors import UsageError
from textcraftor.evaluation.choosing import Choice, pair_units, single_units
from textcraftor.evaluation.picture_sets import PictureSet, read_sets
from textcraftor.evaluation.rating import (
    FILE,
    GRADES,
    LEFT,
    MOST_NAME,
    RIGHT,
    SKIP,
    TIE,
    UNDO,
    Answer,
    Rating,
    Ratings,
    Unit,
    add,
    begin,
    rater_of,
    so_far,
)
from textcraftor.files.pictures import to_rgb
from textcraftor.files.reading import open_picture
from textcraftor.files.writing import locked
from textcraftor.inference.hosting import check_hosting, friendly, serve
from textcraftor.inference.pictures import png_url

LARGEST = 1024  # pixels of a picture's longer side on the page
SMALL = 256  # up to which pictures are enlarged by whole pixels
HEAD = Path(__file__).with_name("rate.html")  # the page's style and its keys
BUTTONS: dict[Answer, str] = {LEFT: "← Left", TIE: "Tie ↓", RIGHT: "Right →"}


def asked(config: DictConfig) -> tuple[dict[str, str], set[str]]:
    """The questions that are asked, by key, and which of them ask for grades.

    Raises:
        UsageError: none, an unknown one, or a key that stands for two.
    """
    known = {**config.questions, **config.grades}
    if twice := next((key for key in config.questions if key in config.grades), None):
        raise UsageError(f"questions.{twice} and grades.{twice} have the same key: rename one")
    if not config.ask:
        raise UsageError(f"ask=[] asks nothing: give some of {', '.join(known)}")
    for key in config.ask:
        if key not in known:
            near = nearest(str(key), known)
            hint = (
                f"; did you mean {near}?" if near else f"; there are {', '.join(known)}, or add questions.{key}='...'"
            )
            raise UsageError(f"ask={key} is an unknown question{hint}")
        if not known[key].strip() or len(key) > MOST_NAME:
            raise UsageError(
                f"the question {key[:MOST_NAME]} must have a text, and a key of at most {MOST_NAME} characters"
            )
    return {key: known[key] for key in config.ask}, {key for key in config.ask if key in config.grades}


class View(NamedTuple):
    """What a rater sees.

    Args:
        body: HTML of the question and the pictures.
        progress: HTML of how far the rater is.
        shown: which question, rater and unit it is about; comes back with the answer.
        pairs, grades: which buttons answer it.
    """

    body: str
    progress: str = ""
    shown: str = ""
    pairs: bool = False
    grades: bool = False


@dataclass
class Desk:
    """Hands out pictures and keeps the answers; raters come one at a time.

    Args:
        units: what is asked about, by question.
    """

    sets: Mapping[str, PictureSet]
    questions: Mapping[str, str]
    units: Mapping[str, list[Unit]]
    choice: Choice
    file: Path
    ratings: Ratings
    lock: Any = field(default_factory=threading.Lock)

    def view(self, rater: object, question: str, *_: object) -> View:
        """The next pictures, for a rater who has a name."""
        if not str(rater or "").strip():
            return View(_message("Type your name to begin."))
        with self.lock:
            return self._next(rater_of(rater), self._known(question))

    def answer(self, answer: Answer, rater: object, question: str, shown: str) -> View:
        """Keep an answer to what was shown, unless that was answered or another rater took over, and go on."""
        name, question = rater_of(rater), self._known(question)
        with self.lock:
            unit = self._unit(name, question, shown)
            if unit and unit not in self._standing(name, question):
                self._add(name, question, unit, self.choice.sides(unit, question, name), answer)
            return self._next(name, question)

    def undo(self, rater: object, question: str, *_: object) -> View:
        """Take the rater's last answer back, and show what it was about again."""
        name, question = rater_of(rater), self._known(question)
        with self.lock:
            mine = [one for unit, one in self._standing(name, question).items() if unit in {*self.units[question]}]
            if not mine:
                raise UsageError("there is no answer to take back")
            self._add(name, question, mine[-1].unit, mine[-1].models, UNDO)
            return self._show(name, question, mine[-1].unit)

    def _add(self, rater: str, question: str, unit: Unit, models: tuple[str, ...], answer: Answer) -> None:
        time = datetime.now(UTC).isoformat(timespec="microseconds")
        add(self.file, self.ratings, Rating(time, rater, question, unit.prompt, unit.seed, models, answer))

    def _standing(self, rater: str, question: str) -> Mapping[Unit, Rating]:
        return self.ratings.standing(question).get(rater, {})

    def _known(self, question: str) -> str:
        if question not in self.questions:
            raise UsageError("choose a question")
        return question

    def _unit(self, rater: str, question: str, shown: str) -> Unit | None:
        """What a page says that it shows; None where it is about another rater or question than the page's now."""
        try:
            theirs, about, place = json.loads(shown)
            return self.units[question][place] if (theirs, about) == (rater, question) and place >= 0 else None
        except (ValueError, TypeError, IndexError):
            return None

    def _next(self, rater: str, question: str) -> View:
        unit = self.choice.next(self.units[question], question, rater, self.ratings)
        if unit is None:
            return View(_message("That was all. Thank you!"), self._progress(rater, question))
        return self._show(rater, question, unit)

    def _show(self, rater: str, question: str, unit: Unit) -> View:
        sides = self.choice.sides(unit, question, rater)
        figures = "".join(_figure(self.sets[name].files[unit.prompt, unit.seed]) for name in sides)
        prompt = f'<p class="prompt">{html.escape(unit.prompt)}</p>'
        body = _message(html.escape(self.questions[question]), f'{prompt}<div class="sides">{figures}</div>')
        shown = json.dumps([rater, question, self.units[question].index(unit)])
        return View(body, self._progress(rater, question), shown, len(sides) == 2, len(sides) == 1)

    def _progress(self, rater: str, question: str) -> str:
        units = self.units[question]
        done = sum(unit in self._standing(rater, question) for unit in units)
        what = "pairs" if len(units[0].models) == 2 else "pictures"
        return f'<progress value="{done}" max="{len(units)}"></progress> <span>{done} of {len(units)} {what}</span>'


def _message(text: str, below: str = "") -> str:
    return f'<div class="rate"><h2>{text}</h2>{below}</div>'


def _figure(file: Path) -> str:
    """A picture's element, with its pixels alone: its name and its texts could tell the model."""
    with open_picture(file) as opened:
        picture = to_rgb(opened, upright=True)
    picture.thumbnail((LARGEST, LARGEST))
    kind = "small" if max(picture.size) <= SMALL else "large"
    return f'<figure><img class="{kind}" src="{png_url(picture, compress_level=1)}"></figure>'


def page(desk: Desk) -> Any:
    """The Gradio page."""
    import gradio

    first = next(iter(desk.questions))
    with gradio.Blocks(title="TextCraftor: rate", analytics_enabled=False) as blocks:
        memory = gradio.BrowserState(["", first], storage_key="textcraftor-rate", secret="textcraftor-rate")
        with gradio.Row():
            rater = gradio.Textbox(
                label="Your name", elem_id="rater", max_length=MOST_NAME, min_width=160, interactive=False
            )
            question = gradio.Radio(
                [(text, key) for key, text in desk.questions.items()],
                value=first,
                label="Question",
                elem_id="question",
                visible=len(desk.questions) > 1,
                min_width=320,
                scale=4,
            )
        body = gradio.HTML(_message("One moment."), elem_id="body")
        shown = gradio.Textbox(visible=False)
        with gradio.Row(visible=False, elem_id="pairs") as pairs:
            answers = {key: gradio.Button(text, elem_id=str(key), min_width=0) for key, text in BUTTONS.items()}
        with gradio.Row(visible=False, elem_id="grades") as grades:
            answers |= {grade: gradio.Button(str(grade), elem_id=f"grade-{grade}", min_width=0) for grade in GRADES}
        with gradio.Row(visible=False, elem_id="others") as others:
            answers[SKIP] = gradio.Button("Skip (S)", elem_id=SKIP, size="sm", min_width=0)
            back = gradio.Button("Undo (U)", elem_id=UNDO, size="sm", min_width=0)
        progress = gradio.HTML(elem_id="progress")
        inputs, outputs = [rater, question, shown], [body, progress, shown, pairs, grades, others, memory]

        def shown_by(act: Callable[[str, str, str], View]) -> Callable:
            def update(rater: str, question: str, shown: str) -> tuple:
                view = act(rater, question, shown)
                rows = (gradio.Row(visible=bool(one)) for one in (view.pairs, view.grades, view.progress))
                return view.body, view.progress, view.shown, *rows, [rater, question]

            return friendly(update)

        def remembered(memory: object) -> tuple:
            name, asked = memory if isinstance(memory, list) and len(memory) == 2 else ("", first)
            return gradio.Textbox(name, interactive=True), asked if asked in desk.questions else first

        quietly: Any = {"show_progress": "hidden"}
        for key, button in answers.items():
            button.click(shown_by(partial(desk.answer, key)), inputs, outputs, **quietly)
        back.click(shown_by(desk.undo), inputs, outputs, **quietly)
        for event in (rater.submit, rater.blur, question.input):
            event(shown_by(desk.view), inputs, outputs, **quietly)
        remember = blocks.load(friendly(remembered), memory, [rater, question], **quietly)
        remember.then(shown_by(desk.view), inputs, outputs, **quietly)
    return blocks


def check(config: DictConfig, folder: Path) -> Desk:
    """The desk without its file; what cannot work is refused before anything is written or served."""
    if not config.models:
        raise UsageError("models is needed: give folders by names, models.base=FOLDER models.tuned=FOLDER")
    questions, graded = asked(config)
    if long := next((name for name in config.models if len(name) > MOST_NAME), None):
        raise UsageError(f"models.{long[:MOST_NAME]} must have a name of at most {MOST_NAME} characters")
    sets = read_sets(config.models)
    units = {key: single_units(sets) if key in graded else pair_units(sets) for key in questions}
    so_far(folder / FILE).about(folder / FILE, {name: one.fingerprint for name, one in sets.items()}, questions)
    check_hosting(config.host, config.port)
    choice = Choice(config.next, config.shared, config.seed)
    return Desk(sets, questions, units, choice, folder / FILE, Ratings())


def run(config: DictConfig, folder: Path) -> str:
    """Serve the page until it is interrupted; each answer is on the disk before the next pictures are shown."""
    desk = check(config, folder)
    with locked(folder):
        fingerprints = {name: one.fingerprint for name, one in desk.sets.items()}
        desk.ratings = begin(desk.file, fingerprints, desk.questions)
        head = HEAD.read_text(encoding="utf-8")
        serve(lambda _: page(desk), config.host, config.port, ready=f"answers go to {desk.file}; ", head=head)
    return f"answers are in {desk.file}"
