"""Signals that ask a run to end: it finishes its step, saves and exits."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REQUEUES = signal.SIGUSR2  # submitit's, before a job's time is over; nobody's where nothing listens to it


class InterruptedRunError(Exception):
    """A run ended early because of a signal; its checkpoint is written."""

    def __init__(self, number: int, step: int) -> None:
        name = signal.Signals(number).name if number else "a signal to another process"
        super().__init__(f"stopped by {name} after step {step}")
        self.number, self.exit_code = number, 128 + (number or signal.SIGTERM)


class Interrupt:
    """Within it, SIGINT, SIGTERM and a launcher's request to stop and to be queued again are only noted in `received`;
    a second SIGINT ends the process as usual.

    A second SIGTERM does not: launchers forward the one that they get, and so a process may get it twice.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> Interrupt:
        listens = threading.current_thread() is threading.main_thread()  # Python hears signals nowhere else
        numbers = [*SIGNALS, *([REQUEUES] if callable(signal.getsignal(REQUEUES)) else [])]
        self._before = {number: signal.signal(number, self._note) for number in numbers if listens}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
