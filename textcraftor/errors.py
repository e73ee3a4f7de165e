"""The one exception for what a user can put right.

The command shows its message as one line, without a traceback.
"""

from __future__ import annotations


class UsageError(ValueError):
    """A value, the rule that it breaks, and the remedy."""


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())
