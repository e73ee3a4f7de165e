"""`textcraftor ratings`: what follows from people's answers: strengths of models, and how well raters agree."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from textcraftor.errors import UsageError
from textcraftor.evaluation.agreement import agreement
from textcraftor.evaluation.bradley_terry import compared
from textcraftor.evaluation.choosing import votes_of
from textcraftor.evaluation.picture_sets import Key, PictureSet, read_sets
from textcraftor.evaluation.rating import FILE, SKIP, Rating, Ratings, Unit, merged, read_ratings
from textcraftor.evaluation.report import write_ratings
from textcraftor.evaluation.statistics import interval_text, paired_difference
from textcraftor.files.writing import check_unfinished, finish, locked, write_json, write_text

SHOWN = 6  # rows of pictures of each kind in a report


def read(files: Sequence[str], key: str = "files") -> Ratings:
    """The answers of files, or of folders that `rate` wrote.

    Args:
        key: of the configuration that names them.

    Raises:
        UsageError: none, one twice, a broken line, files that do not belong together, no answer.
    """
    if not files:
        raise UsageError(f"{key}=[]: name what textcraftor rate wrote, as ratings/{FILE}")
    places = {given: Path(given).expanduser() for given in files}
    places = {given: place / FILE if place.is_dir() else place for given, place in places.items()}
    if len({place.resolve() for place in places.values()}) < len(files):
        raise UsageError(f"{key}={list(files)} names a file twice: give each once")
    ratings = merged({str(place): read_ratings(place) for place in places.values()})
    if not any(ratings.standing(question) for question in ratings.questions):
        raise UsageError(f"{' and '.join(map(str, places.values()))} holds no answers yet: rate some pictures first")
    return ratings


def check(config: DictConfig, folder: Path) -> tuple[Ratings, dict[str, PictureSet]]:
    """The answers and the pictures for the report; what does not belong together is refused."""
    ratings = read(config.files)
    if strange := next((key for key in config.questions or () if key not in ratings.questions), None):
        raise UsageError(f"questions={strange} is an unknown question; the file has {', '.join(ratings.questions)}")
    if config.questions is not None and not any(map(ratings.standing, config.questions)):
        raise UsageError(
            f"questions={list(config.questions)} have no answers yet: choose others, or rate some pictures"
        )
    sets = sets_of(ratings, config.models)
    check_unfinished(folder, "what follows from ratings")
    return ratings, sets


def sets_of(ratings: Ratings, folders: Mapping[str, str]) -> dict[str, PictureSet]:
    """The pictures that were rated, wherever their folders are by now.

    Raises:
        UsageError: a model that was not rated, or other pictures than those that were rated by its name.
    """
    if strange := next((name for name in folders if name not in ratings.models), None):
        raise UsageError(f"models.{strange} was not rated; the file has {', '.join(ratings.models)}")
    sets = read_sets(folders)
    if other := next((name for name, one in sets.items() if one.fingerprint != ratings.models[name]), None):
        raise UsageError(
            f"models.{other}={folders[other]} holds other pictures than those that were rated as {other}: give their "
            "folder"
        )
    return sets


def of_question(ratings: Ratings, question: str, samples: int, seed: int) -> dict[str, Any]:
    """The summary of the answers to one question.

    Returns:
        `question`, `answers`, `skipped` and `prompts`. If any answer is not skipped, also `agreement` (see `agreement`)
        and what `compared` (for pairs) or `graded` (for grades) returns.
    """
    standing = [one for mine in ratings.standing(question).values() for one in mine.values()]
    answers = [one for one in standing if one.answer != SKIP]
    figures: dict[str, Any] = {
        "question": ratings.questions[question],
        "answers": len(answers),
        "skipped": len(standing) - len(answers),
        "prompts": len({one.prompt for one in answers}),
    }
    if not answers:
        return figures
    pairs = len(answers[0].models) == 2
    answers = [one for one in answers if (len(one.models) == 2) == pairs]
    # Of a pair -1, 0 or 1, so that a turned pair has the opposite value.
    rated = [
        {one.rater: 2 * one.score - 1 if pairs else one.score for one in given} for given in by_unit(answers).values()
    ]
    comparison = compared(votes_of(answers, list(ratings.models)), samples, seed) if pairs else graded(answers)
    return {**figures, **comparison, "agreement": agreement(rated, pairs)}


def by_unit(answers: Iterable[Rating]) -> dict[Unit, list[Rating]]:
    """Every rater's answer, by what it is about."""
    units: dict[Unit, list[Rating]] = {}
    for one in answers:
        units.setdefault(one.unit, []).append(one)
    return units


def graded(answers: Sequence[Rating]) -> dict[str, Any]:
    """Each model's mean grade, and the difference of each two models, with Student's t 95 % intervals over prompts.

    A picture's grade is the mean over its raters, a prompt's over its pictures; differences are of the same prompts and
    seeds.

    Returns:
        `grades` {model: {mean, low, high, n}} and `differences` [{first, second, mean, low, high, n, win_rate}].
    """
    pictures: dict[str, dict[Key, float]] = {}
    for unit, given in by_unit(answers).items():
        pictures.setdefault(unit.models[0], {})[unit.prompt, unit.seed] = float(np.mean([one.score for one in given]))
    means = {name: _over_prompts(dict.fromkeys(mine, 0.0), mine) for name, mine in sorted(pictures.items())}
    differences = [
        {"first": one, "second": other, **_over_prompts(pictures[other], pictures[one])}
        for one, other in itertools.combinations(sorted(pictures), 2)
    ]
    grades = {name: {key: mine[key] for key in ("mean", "low", "high", "n")} for name, mine in means.items()}
    return {"grades": grades, "differences": differences}


def _over_prompts(before: Mapping[Key, float], after: Mapping[Key, float]) -> dict[str, float]:
    """The paired difference of grades over the prompts whose pictures both have."""
    prompts: dict[str, list[Key]] = {}
    for key in sorted(before.keys() & after.keys()):
        prompts.setdefault(key[0], []).append(key)
    sides = [[[np.mean([side[key] for key in keys])] for keys in prompts.values()] for side in (before, after)]
    first, second = (np.array(side).reshape(-1, 1) for side in sides)
    return paired_difference(first, second)


def pictures_of(ratings: Ratings, question: str, sets: Mapping[str, PictureSet]) -> dict[str, list[dict]]:
    """A report's pictures, by headings: of pairs the clearest preferences and those on which raters differ most; of
    grades the best and the worst."""
    standing = [one for mine in ratings.standing(question).values() for one in mine.values() if one.answer != SKIP]
    units = {
        unit: given
        for unit, given in by_unit(standing).items()
        if all(name in sets and (unit.prompt, unit.seed) in sets[name].files for name in unit.models)
    }
    scores = {unit: np.array([one.score for one in given]) for unit, given in units.items()}
    pairs = [unit for unit in units if len(unit.models) == 2]
    singles = [unit for unit in units if len(unit.models) == 1]
    clear = sorted(pairs, key=lambda unit: -abs((scores[unit] - 0.5).sum()))[:SHOWN]
    split = sorted(pairs, key=lambda unit: -min((scores[unit] == 1).sum(), (scores[unit] == 0).sum()))[:SHOWN]
    split = [unit for unit in split if {0.0, 1.0} <= {*scores[unit]}]
    graded = sorted(singles, key=lambda unit: -scores[unit].mean())
    half = min(SHOWN, len(graded) // 2)
    best, worst = graded[:half], graded[len(graded) - half :]
    chosen = {"Clearest preferences": clear, "Raters differ": split, "Best grades": best, "Worst grades": worst}
    return {why: [_row(unit, scores[unit], sets) for unit in some] for why, some in chosen.items()}


def _row(unit: Unit, scores: np.ndarray, sets: Mapping[str, PictureSet]) -> dict[str, Any]:
    """A prompt's pictures, the preferred one first, each with its share of the votes or its mean grade."""
    if len(unit.models) == 1:
        labels = {unit.models[0]: f"{unit.models[0]}: {scores.mean():.1f}"}
    else:
        won = {unit.models[0]: scores.sum(), unit.models[1]: (1 - scores).sum()}
        labels = {name: f"{name}: {won[name]:g} of {len(scores)}" for name in sorted(won, key=lambda name: -won[name])}
    pictures = [{"file": sets[name].files[unit.prompt, unit.seed], "label": label} for name, label in labels.items()]
    return {"prompt": unit.prompt, "pictures": pictures}


def table(result: Mapping[str, Mapping]) -> str:
    """The strengths or grades of every question, as Markdown."""
    lines = []
    for key, one in result.items():
        lines += [f"{key}: {one['question']} {one['answers']} answers, {one['skipped']} skipped", ""]
        if "models" in one:
            lines += ["| model | Elo | 95 % over votes | 95 % over prompts |", "| --- | --- | --- | --- |"]
            for name, model in sorted(one["models"].items(), key=lambda item: -item[1]["elo"]):
                intervals = " | ".join(interval_text(model[draw], 0) for draw in ("over_votes", "over_prompts"))
                lines.append(f"| {name} | {model['elo']:+.0f} | {intervals} |")
        elif "grades" in one:
            lines += ["| model | grade | 95 % over prompts | n |", "| --- | --- | --- | --- |"]
            for name, grade in one["grades"].items():
                lines.append(f"| {name} | {grade['mean']:.2f} | {interval_text(grade, 2, '')} | {grade['n']} |")
        lines.append("")
    return "\n".join(lines)


def run(config: DictConfig, folder: Path) -> str:
    """Write `ratings.json`, `table.md` and `report.html`; returns the table."""
    ratings, sets = check(config, folder)
    questions = [key for key in config.questions or ratings.questions if ratings.standing(key)]
    result = {key: of_question(ratings, key, config.samples, config.seed) for key in questions}
    pictures = {key: pictures_of(ratings, key, sets) for key in questions if sets}
    text = table(result)
    with locked(folder):
        write_json(folder / "ratings.json", {"questions": result})
        write_text(folder / "table.md", text)
        yaml = OmegaConf.to_yaml(config, resolve=True)
        write_ratings(folder / "report.html", f"TextCraftor: {folder.name}", result, yaml, pictures)
        finish(folder, "ratings")
    return f"wrote {folder}\n\n{text}"
