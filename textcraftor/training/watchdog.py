"""Names the process of a launch that is lost or late, so that no run waits for ever and without a word."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any

import torch

from textcraftor.errors import EndedRunError, QueuedAgainError, UsageError, one_line
from textcraftor.training.processes import HERE, processes_of_this_run

BEAT = 0.5  # seconds between two signs of life
SILENCE = 60.0  # seconds without one after which a process counts as lost
GRACE = 5.0  # seconds that a process has to end by itself once another is lost or late
ENDED = 1  # the exit code of a process that waits for a lost one in a library, where no exception reaches it
BROKEN = ("gloo", "NCCL", "TCPStore", "onnection", "roken pipe")  # in what torch says where a process is gone


class Watchdog:
    """Within it, a thread tells the other processes where this one is, and looks where they are.

    A process that is gone, or for which others have waited longer than `patience`, is named together with the phase
    that it was last in, and all others end.

    Args:
        patience: seconds.
        remedy: the message after the process's name.
    """

    def __init__(self, patience: float, remedy: str) -> None:
        processes = processes_of_this_run()
        self.patience, self.remedy = patience, remedy
        self.own, self.count = processes.process_index, processes.num_processes
        self._over, self._trouble, self._reason = threading.Event(), "", ""
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}  # each process's last sign, and when it changed

    def __enter__(self) -> Watchdog:
        if self.count > 1:
            store: Any = torch.distributed.distributed_c10d._get_default_store()
            self._store = torch.distributed.PrefixStore("watchdog", store.clone())  # a connection of this thread's own
            self._beats = 0
            self._tell()
            processes_of_this_run().wait_for_everyone()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.count == 1:
            return
        if error is None:
            self._over.set()
            processes_of_this_run().wait_for_everyone()
        elif isinstance(error, RuntimeError) and any(word in str(error) for word in BROKEN):
            raise UsageError(self._who_is_gone()) from error
        elif not isinstance(error, EndedRunError | QueuedAgainError):
            self._reason = one_line(error) or type(error).__name__
            time.sleep(3 * BEAT)  # so that the others hear it
        self._over.set()

    def _tell(self) -> None:
        self._beats += 1
        sign = {"beat": self._beats, "phase": HERE.phase, "moves": HERE.moves, "waits": HERE.waits}
        self._store.set(str(self.own), json.dumps(sign | {"reason": self._reason}))

    def _look(self) -> None:
        """Take in every process's sign; the time is kept of the last one that was new."""
        now = time.monotonic()
        for process in range(self.count):
            sign = json.loads(self._store.get(str(process)))
            known = self._seen.get(process)
            if known is None or known[0]["beat"] != sign["beat"]:
                still = known is not None and known[0]["moves"] == sign["moves"]
                sign["since"] = known[0]["since"] if still and known is not None else now
                self._seen[process] = sign, now

    def _watch(self) -> None:
        while not self._over.wait(BEAT):
            try:
                self._tell()
                self._look()
                self._trouble = self._judged()
            except Exception:  # the store is gone, and with it the process that keeps it
                self._trouble = self._trouble or self._lost([0])
            if self._trouble and not self._reason and not self._over.wait(GRACE):
                print(f"textcraftor: {self._trouble}", file=sys.stderr, flush=True)
                os._exit(ENDED)

    def _judged(self) -> str:
        """What is wrong with another process; nothing while all is well."""
        now, others = time.monotonic(), {one: sign for one, sign in self._seen.items() if one != self.own}
        for process, (sign, _) in others.items():
            if sign["reason"]:
                return f"process {process} failed in {sign['phase']}: {sign['reason']}"
        if silent := [process for process, (_, heard) in others.items() if now - heard > SILENCE]:
            return self._lost(silent)
        waiting = [sign for sign, _ in self._seen.values() if sign["waits"] and now - sign["since"] > self.patience]
        late = [
            one for one, (sign, _) in self._seen.items() if not sign["waits"] and now - sign["since"] > self.patience
        ]
        if waiting and late:
            where = ", ".join(f"process {one} is late in {self._seen[one][0]['phase']}" for one in late)
            return f"{where}: the others waited {self.patience:g} s (processes.patience); {self.remedy}"
        return ""

    def _lost(self, which: list[int]) -> str:
        """Of processes that give no sign, where they were last."""
        phases = {one: self._seen[one][0]["phase"] if one in self._seen else HERE.phase for one in which}
        return "; ".join(f"process {one} was lost in {phase}" for one, phase in phases.items()) + f"; {self.remedy}"

    def _who_is_gone(self) -> str:
        """Who gave no sign since a connection broke."""
        broke = time.monotonic()
        while not self._trouble and time.monotonic() - broke < 6 * BEAT:
            time.sleep(BEAT)
        if self._trouble:
            return self._trouble
        gone = [one for one, (_, heard) in self._seen.items() if one != self.own and heard < broke + BEAT]
        return self._lost(gone) if gone else f"a process was lost in {HERE.phase}; {self.remedy}"
