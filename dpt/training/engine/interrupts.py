"""When a run ends early: a signal, a deadline, or losses that stay non-finite."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from dpt.errors import UserError

EXIT_STOPPED = 75
"""Exit code of a run that was stopped, saved its state and can be resumed (EX_TEMPFAIL of sysexits.h)."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    finished: bool
    """False if the run was stopped and can be resumed."""


class StopRequest:
    """Inside the block, a first SIGTERM or SIGINT (Ctrl-C) is noted; a second one ends the process at once."""

    def __init__(self, until: float | None = None) -> None:
        self.until = until
        """Clock time (`time.time()`) after which a stop counts as requested."""
        self._signalled = False
        self._before: dict[signal.Signals, Any] = {}

    @property
    def made(self) -> bool:
        return self._signalled or (self.until is not None and time.time() > self.until)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            if handler is not None:
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        for handled in SIGNALS:
            signal.signal(handled, signal.SIG_DFL)


class NonFiniteSteps:
    """Ends the run after `limit` consecutive steps whose loss or gradient is not finite."""

    def __init__(self, limit: int, examples_of: Callable[[int], Sequence[str]]) -> None:
        self.limit = limit
        self.examples_of = examples_of
        self.in_a_row = 0

    def update(self, steps: Sequence[int], bad: Sequence[int]) -> None:
        """`steps` in the order in which they were taken, and those of them that were not finite."""
        for step in steps:
            self.in_a_row = self.in_a_row + 1 if step in bad else 0
            if self.in_a_row >= self.limit:
                examples = {
                    bad_step: self.examples_of(bad_step) for bad_step in range(step - self.in_a_row + 1, step + 1)
                }
                raise UserError(
                    f"the loss or its gradient was not finite in {self.in_a_row} steps in a row, up to step {step}; "
                    f"none of them was applied; their examples, by step: {json.dumps(examples)}"
                )
