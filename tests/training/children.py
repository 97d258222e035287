"""Run work in forked child processes, which start fast, since nothing is imported again, and can be killed."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import sys
import tempfile
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


def end_of_child(work: Callable[[], object]) -> int:
    """Do the work in a child: 0, 1 after an exception, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(in_a_child(work), 0)[1])


def ranks(work: Callable[[], object], count: int = 2) -> str:
    """Do the work in each of `count` processes of one group, as a launcher starts them; what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def as_rank(rank: int) -> None:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()  # that of the parent, which is alone
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in {**group, **where}.items()} if count > 1 else {})
        os.environ["ACCELERATE_USE_CPU"] = "true"
        work()

    with tempfile.TemporaryFile() as output:
        children = [in_a_child(lambda rank=rank: as_rank(rank), output.fileno()) for rank in range(count)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        output.seek(0)
        printed = output.read().decode()
    assert codes == [0] * count, printed[-3000:]
    return printed


def as_main(module: str, *words: str) -> None:
    """What `python -m MODULE WORDS` does, in this process."""
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, end.code
