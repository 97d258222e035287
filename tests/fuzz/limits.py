"""Limits of memory and time for one case, enforced by the kernel."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MIB = 2**20


class TimeLimitExceeded(BaseException):
    """Not an Exception, so that the code under test cannot catch it as a fault of the file."""


def limit_memory(more: int) -> None:
    """Limit the growth of this process's address space to this many bytes."""
    limit = status("VmSize") + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # so that the peak is counted from here


def status(name: str) -> int:
    """A size in bytes as the kernel reports it: VmSize, VmRSS, VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Processor time, so that a busy machine is not a slow parser."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeLimitExceeded(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
