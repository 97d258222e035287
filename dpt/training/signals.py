"""A polite request to stop: noted at once, granted between two steps. The second one is not polite."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

STOPPED = 75
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
