"""Pictures before and after, with the advice between them: which pairs are learned from, and why the others are not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from textcraftor.errors import UsageError
from textcraftor.evaluation.report import render
from textcraftor.evaluation.suite import KEYS, PICTURES
from textcraftor.files.reading import read_json_lines, shaped
from textcraftor.files.writing import json_line, write_text

PAIRS, KEPT, PAGE = "pairs.jsonl", "kept.jsonl", "pairs.html"
SHAPE = {"before": str, "after": str, "prompt": str, "seed": int}  # of a line of kept.jsonl, beside others


@dataclass(frozen=True)
class Pair:
    """A picture before and after.

    Args:
        before, after: the files, within the round's folder.
        regions: the advice between them.
        scores: by figure, those of both pictures: {"before": ..., "after": ...}.
        why_not: the rule that the pair breaks; empty where it is kept.
    """

    prompt: str
    seed: int
    before: str
    after: str
    regions: Sequence[Mapping[str, Any]]
    scores: Mapping[str, Mapping[str, float | None]]
    why_not: str = ""

    def rise(self, name: str) -> float:
        """How much a figure rose; minus infinity where one of the pictures has none."""
        before, after = self.scores["before"].get(name), self.scores["after"].get(name)
        return float("-inf") if before is None or after is None else after - before


def pair_of(before: Mapping[str, Any], after: Mapping[str, Any], regions: Sequence[Mapping[str, Any]]) -> Pair:
    """A pair from the rows that both stores wrote."""
    scores = {
        side: {name: value for name, value in row.items() if name not in KEYS}
        for side, row in (("before", before), ("after", after))
    }
    name = f"{PICTURES}/{Path(before['picture']).name}"  # of the same prompt and seed in both
    return Pair(before["prompt"], before["seed"], f"before/{name}", f"after/{name}", regions, scores)


def check_filter(config: DictConfig) -> None:
    """Refuse rules about figures that nobody measures."""
    known = ["total", *(name for name, part in config.rewards.items() if part is not None)]
    asked = [*((f"filter.gain.{name}", name) for name in config.filter.gain)]
    asked += [*((f"filter.least.{name}", name) for name in config.filter.least), ("filter.by", config.filter.by)]
    for key, name in asked:
        if name not in known:
            raise UsageError(f"{key}: no scorer of rewards has this name; there are {', '.join(known)}")
    if config.filter.similarity is not None and config.filter.clip is None:
        raise UsageError(f"filter.similarity={config.filter.similarity} needs filter.clip=, the path of a CLIP")


def filtered(pairs: Sequence[Pair], rules: DictConfig) -> list[Pair]:
    """All pairs, those that break a rule with the rule.

    Args:
        rules: the configuration's `filter`.
    """
    judged = [replace(pair, why_not=why_not(pair, rules)) for pair in pairs]
    passed = sorted((pair for pair in judged if not pair.why_not), key=lambda pair: -pair.rise(rules.by))
    best = passed[: max(1, round(rules.share * len(passed)))]
    limit = best[-1].rise(rules.by) if best else 0.0
    reason = f"not of the best {rules.share:.0%} by {rules.by}, which rose by {limit:.4g} at least"
    return [pair if pair.why_not or pair in best else replace(pair, why_not=reason) for pair in judged]


def why_not(pair: Pair, rules: DictConfig) -> str:
    """The first rule that a pair breaks."""
    for name, least in rules.gain.items():
        if not pair.rise(name) >= least:
            return f"{name} rose by {pair.rise(name):.4g}, less than {least:g}"
    for name, least in rules.least.items():
        score = pair.scores["after"].get(name)
        if score is None or not score >= least:
            return f"{name} is {'nothing' if score is None else f'{score:.4g}'}, less than {least:g}"
    alike = pair.scores["after"].get("similarity")
    if rules.similarity is not None and (alike is None or alike < rules.similarity):
        return f"similarity is {alike:.4g}, less than {rules.similarity:g}"
    return ""


def refuse_none(pairs: Sequence[Pair], rules: DictConfig) -> None:
    """Refuse a filter that keeps no pair; the error gives the largest rises."""
    if any(not pair.why_not for pair in pairs):
        return
    asked = {**rules.gain} or {"total": 0.0}
    rises = {name: max(pair.rise(name) for pair in pairs) for name in asked}
    rises_text = ", ".join(f"{name} rose by {rise:.4g} at most" for name, rise in rises.items())
    broken = max({pair.why_not for pair in pairs}, key=[pair.why_not for pair in pairs].count)
    raise UsageError(
        f"filter keeps none of {len(pairs)} pairs ({rises_text}; {broken}, and others): loosen filter, or take another "
        f"understander; {PAGE} shows the pairs"
    )


def write_pairs(folder: Path, pairs: Sequence[Pair], title: str, config: DictConfig) -> None:
    """Write all pairs as lines and as a page to look at, and the kept ones in a list of their own.

    Raises:
        UsageError: none is kept; there is no list then, so that another filter may follow.
    """
    write_text(folder / PAIRS, "".join(json_line(asdict(pair)) for pair in pairs))
    kept = [pair for pair in pairs if not pair.why_not]
    shown = {"title": title, "judged": pairs, "kept": len(kept), "config": OmegaConf.to_yaml(config, resolve=True)}
    write_text(folder / PAGE, render("pairs.html.j2", Path(__file__).parent, **shown))
    refuse_none(pairs, config.filter)
    lines = (json.dumps({name: getattr(pair, name) for name in SHAPE}, ensure_ascii=False) for pair in kept)
    write_text(folder / KEPT, "".join(f"{line}\n" for line in lines))


def read_kept(folder: Path) -> list[dict[str, Any]]:
    """The pairs to learn from: what the filter kept, less what somebody took out of the list."""
    rows = [shaped(folder / KEPT, row, SHAPE) for row in read_json_lines(folder / KEPT)]
    for row in rows:
        for side in ("before", "after"):
            if not (folder / side / PICTURES / Path(row[side]).name).is_file():
                raise UsageError(f"{folder / KEPT}: {row[side]} is not there: take the line out")
    if not rows:
        raise UsageError(f"{folder / KEPT} lists no pair: there is nothing to learn from; leave some in")
    return rows
