"""Exceptions that the command shows as one line, without a traceback."""

from __future__ import annotations


class UsageError(ValueError):
    """A value, the rule that it breaks, and the remedy."""


class EndedRunError(Exception):
    """A run ended as it was asked to, by a signal; its checkpoint is written.

    Args:
        code: what the command exits with.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class QueuedAgainError(SystemExit):
    """A launcher has queued the job again, and ends this process with its own exit code."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())


def printable(line: str, most: int) -> str:
    """A line without characters that steer a terminal, cut after `most`."""
    shown = "".join(sign if sign.isprintable() else "?" for sign in line)
    return shown if len(shown) <= most else f"{shown[:most]} ..."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device's memory does not suffice."""
    phrases = ("not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in phrases)
