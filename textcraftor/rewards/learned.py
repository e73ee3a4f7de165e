"""Rewards that `textcraftor train-reward` made: folders in the layouts of published scorers, read as data."""

from __future__ import annotations

from pathlib import Path

from textcraftor.errors import UsageError
from textcraftor.files.reading import check_confined, read_json, shaped
from textcraftor.rewards.aesthetic import Aesthetic
from textcraftor.rewards.base import Reward
from textcraftor.rewards.clip import PickScore

RECORD, HEAD, CLIP = "reward.json", "head.safetensors", "clip"
AESTHETIC, PICKSCORE = LAYOUTS = ("aesthetic", "pickscore")
FORMAT = 1
SHAPE = {"format": int, "layout": str, "clip": str}


def load(path: str | None, clip: str | None = None) -> Reward:
    """A reward from the folder that holds it.

    Args:
        path: the folder.
        clip: where the CLIP under an aesthetic head is by now; None: where it was.

    Raises:
        UsageError: no such folder, or one of another kind.
    """
    if path is None:
        raise UsageError("rewards.mine.path is needed: give the folder that textcraftor train-reward wrote")
    folder = Path(path).expanduser()
    if not (folder / RECORD).exists():
        raise UsageError(f"rewards.mine.path={path} holds no {RECORD}: give the folder that train-reward wrote")
    check_confined(folder)
    record = shaped(folder / RECORD, read_json(folder / RECORD), SHAPE)
    if record["format"] != FORMAT or record["layout"] not in LAYOUTS:
        raise UsageError(f"{folder / RECORD}: another TextCraftor wrote it: train the reward again")
    if record["layout"] == AESTHETIC:
        return Aesthetic.load(clip or record["clip"], str(folder / HEAD))
    return PickScore.load(str(folder / CLIP))
