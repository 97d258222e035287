"""When a run ends early: a signal, or losses that stay non-finite."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any

from dpt.errors import UserError

EXIT_STOPPED = 75
"""Exit code of a run that was asked to stop, saved its state and can be resumed (EX_TEMPFAIL of sysexits.h)."""


class StopRequest:
    """Inside the block, a first SIGTERM is noted; a second ends the process as if nobody had listened."""

    def __init__(self) -> None:
        self.made = False
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.made = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class NonFiniteSteps:
    def __init__(self, limit: int, examples_of: Callable[[int], Sequence[str]]) -> None:
        self.limit = limit
        self.examples_of = examples_of
        self.in_a_row = 0

    def see(self, steps: Sequence[int], bad: Sequence[int]) -> None:
        """`steps` in the order in which they were taken, and those of them that were not finite."""
        for step in steps:
            self.in_a_row = self.in_a_row + 1 if step in bad else 0
            if self.in_a_row >= self.limit:
                examples = {one: self.examples_of(one) for one in range(step - self.in_a_row + 1, step + 1)}
                raise UserError(
                    f"the loss or its gradient was not finite in {self.in_a_row} steps in a row, up to step {step}; "
                    f"none of them was applied; their examples, by step: {json.dumps(examples)}"
                )
