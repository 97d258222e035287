"""python -m tests.faults.accidents KIND RANK STEP STAGE WORDS: run a training command and let one process fail.

KIND is kill; stop (the process hangs, and the others wait for twenty seconds instead of half an hour); worker (a data
loader worker is killed); or slow (each step from then on takes 15 s).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from multiprocessing import active_children
from typing import Any

from dpt import distributed as processes
from dpt.cli.train import stages as train_stage1
from dpt.cli.train import stages as train_stage2
from dpt.training.engine.loop import Loop


def main(kind: str, rank: str, step: str, stage: str, words: list[str]) -> int:
    original_take_step = Loop.take_step

    def take_step(self: Loop, micro_batches: Any) -> None:
        original_take_step(self, micro_batches)
        late = self.step > int(step) and kind == "slow"
        if (late or self.step == int(step)) and os.environ.get("RANK", "0") == rank:
            cause_accident(kind)

    Loop.take_step = take_step  # type: ignore[method-assign]
    if kind == "stop":
        processes.COLLECTIVE_TIMEOUT = timedelta(seconds=20)
    return {"1": train_stage1.main_stage1, "2": train_stage2.main_stage2}[stage](words)


def cause_accident(kind: str) -> None:
    if kind == "worker":
        for child in active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
    elif kind == "slow":
        time.sleep(15)
    else:
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[kind])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:5], sys.argv[5:]))
