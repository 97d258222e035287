"""python -m tests.faults.dying HOW RANK STEP STAGE WORDS: a training command one of whose processes has an accident.

HOW is kill (it is gone without a word), stop (it is there, but never answers again; then the others wait for twenty
seconds, not for half an hour), worker (a process that prepares its batches is killed) or dawdle (nothing happens, but
each step from then on takes a while).
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


def main(how: str, rank: str, step: str, stage: str, words: list[str]) -> int:
    ordinary = Loop.take_step

    def take_step(self: Loop, micro_batches: Any) -> None:
        ordinary(self, micro_batches)
        late = self.step > int(step) and how == "dawdle"
        if (late or self.step == int(step)) and os.environ.get("RANK", "0") == rank:
            have_an_accident(how)

    Loop.take_step = take_step  # type: ignore[method-assign]
    if how == "stop":
        processes.COLLECTIVE_TIMEOUT = timedelta(seconds=20)
    return {"1": train_stage1.main_stage1, "2": train_stage2.main_stage2}[stage](words)


def have_an_accident(how: str) -> None:
    if how == "worker":
        for child in active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
    elif how == "dawdle":
        time.sleep(15)
    else:
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[how])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:5], sys.argv[5:]))
