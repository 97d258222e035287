"""Run work in a forked child process, which starts fast and can be killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable

from tqdm import tqdm

CHILD_SECONDS = 300
"""Longest time of a child in seconds, after which it is ended so that its parent does not wait forever."""


def in_a_child(work: Callable[[], object], stdout: int | None = None) -> int:
    """Return the process id. Output goes to the descriptor `stdout`, or is discarded."""
    child = os.fork()
    if child:
        return child
    signal.alarm(CHILD_SECONDS)
    tqdm.set_lock(threading.RLock())  # its own lock is shared by forks: killed with it, a child would block its parent
    os.dup2(os.open(os.devnull, os.O_WRONLY) if stdout is None else stdout, 1)
    os.dup2(1, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)  # not what a test captures
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    code = 1
    try:
        work()
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
