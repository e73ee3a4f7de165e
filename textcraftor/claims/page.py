"""The page that shows the results of every claim in a ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textcraftor.claims.verdict import CONTRADICTED, SUPPORTED, UNDECIDED
from textcraftor.evaluation.ledger import markdown
from textcraftor.evaluation.statistics import LEAST_SEEDS

PICTURES = "claims"  # the folder of pictures beside the page
INTRODUCTION = f"""\
# Claims

What papers say of these methods, each checked by `textcraftor claims` on the embedded world.

- A comparison is *{SUPPORTED}* where all of its 95 % interval lies where the claim says, *{CONTRADICTED}* where
  none of it does, else *{UNDECIDED}*.
- Intervals are over training seeds and prompts, crossed: they are two sources of variance. Fewer than {LEAST_SEEDS}
  training seeds have none. Where nothing is trained, intervals are over prompts alone.
- In parentheses the standard deviation over training seeds; n prompts.
- *Shown from* says how far beyond the margin an effect must lie to be shown with a power of at least 80 %.
- A pass is one picture through the denoiser; a step with a gradient counts three.
"""


def page(ledger: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of a ledger, as Markdown."""
    heads = ["| claim | paper | verdict |", "| --- | --- | --- |"]
    rows = [f"| [{name}](#{anchor(name)}) | {one['paper']} | {one['verdict']} |" for name, one in ledger.items()]
    if not ledger:
        return f"{INTRODUCTION}\nNo claim has been checked at full size yet.\n"
    return "\n".join([INTRODUCTION, *heads, *rows, "", *(section(name, one) for name, one in ledger.items())])


def anchor(name: str) -> str:
    """The anchor of a heading."""
    return name.lower().replace(" ", "-")


def section(name: str, entry: Mapping[str, Any]) -> str:
    """The results of one claim."""
    arms = "".join(f"- {arm}: {cost_text(about)}\n" for arm, about in entry["arms"].items())
    rates = ", ".join(f"{run} {rate:g}" for run, rate in entry["rates"].items())
    lines = [
        f"## {name}\n",
        f"{entry['sentence']} ({entry['paper']}, {entry['section']})\n",
        f"**{entry['verdict'].capitalize()}.** {entry['caveat'] or ''}".strip() + "\n",
        f"<!-- claims.json: {name} -->\n",
        markdown(entry),
        arms,
        *([f"Learning rates, chosen on other prompts and another training seed: {rates}.\n"] if rates else []),
        f"![One prompt a row: {', '.join(entry['arms'])}]({PICTURES}/{name}.png)\n",
        f"`{entry['command']}`, {entry['date']}, torch {entry['versions']['torch']}\n",
    ]
    return "\n".join(lines)


def cost_text(arm: Mapping[str, Any]) -> str:
    """An arm's keys, and what its training cost."""
    keys = " ".join(f"`{key}`" for key in arm["keys"]) or "as it is"
    cost = f"; {arm['passes']:,.0f} passes in training, {arm['seconds']:,.0f} seconds" if arm["passes"] else ""
    return f"{keys}{cost}"
