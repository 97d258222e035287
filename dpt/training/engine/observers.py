"""What watches a run and may end it early: signals, a deadline, non-finite losses, the best result, the time left.

Observers run in the main process only, between steps.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from tqdm import tqdm

from dpt.errors import UserError
from dpt.files import atomic_folder

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


BEST, BEST_RECORD = "best", "best.json"

ERRORS = ("mse", "loss", "error")
"""A metric with one of these words in its name is better when it is lower, and so is a loss of the task."""


class RunObserver:
    """Called by the loop. This one does nothing."""

    def started(self, step: int) -> None:
        """The run starts, or continues after `step`."""

    def after_step(self, step: int) -> None: ...

    def after_validation(self, step: int, metrics: Mapping[str, float]) -> None: ...

    @property
    def ends_run(self) -> bool:
        """Whether the run is finished before its last step."""
        return False


class Observers(RunObserver):
    def __init__(self, observers: Sequence[RunObserver]) -> None:
        self.observers = tuple(observers)

    def started(self, step: int) -> None:
        for observer in self.observers:
            observer.started(step)

    def after_step(self, step: int) -> None:
        for observer in self.observers:
            observer.after_step(step)

    def after_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        for observer in self.observers:
            observer.after_validation(step, metrics)

    @property
    def ends_run(self) -> bool:
        return any(observer.ends_run for observer in self.observers)


class BestResult(RunObserver):
    """Exports the result of the validation with the best metric, and ends a run that stops improving.

    Its state is a function of the log, so that a resumed run decides as one that was never stopped.
    """

    def __init__(
        self,
        root: Path,
        metric: str,
        export: Callable[[Path], object],
        patience: int | None = None,
        losses: Collection[str] = (),
    ) -> None:
        self.root, self.metric, self.export, self.patience = root, metric, export, patience
        self.sign = -1.0 if metric in losses or any(word in metric for word in ERRORS) else 1.0
        self.history: list[tuple[int, float]] = []

    def started(self, step: int) -> None:
        from dpt.training.engine.logging import read_log

        validations = []
        with suppress(UserError):  # there is no log before the first step
            validations = read_log(self.root)[1]
        lines = [(line["step"], line["validation"]) for line in validations]
        self.history = [(at, metrics[self.metric]) for at, metrics in lines if self.metric in metrics]

    def after_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.metric not in metrics:
            raise UserError(f"--keep_best {self.metric}: this run's validation has {', '.join(metrics) or 'no metric'}")
        self.history = [entry for entry in self.history if entry[0] != step] + [(step, metrics[self.metric])]
        if self.best == (step, metrics[self.metric]):
            with atomic_folder(self.root / BEST, replace=True) as folder:
                self.export(folder)
                record = {"step": step, "metric": self.metric, "value": metrics[self.metric]}
                (folder / BEST_RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value; of equal values the first."""
        return max(self.history, key=lambda entry: self.sign * entry[1], default=None)

    @property
    def ends_run(self) -> bool:
        if self.patience is None or self.best is None:
            return False
        return sum(step > self.best[0] for step, _ in self.history) >= self.patience

    def describe(self) -> str | None:
        """One line about the best result."""
        if self.best is None:
            return None
        step, value = self.best
        ended = f"; it did not improve in {self.patience} validations" if self.ends_run else ""
        return f"best {self.metric}: {value:.4g} at step {step}, in {self.root / BEST}{ended}"


WARM_UP, MEASURED = 1, 3
"""Steps before and during the measurement of a step's time."""

SLOW = 10.0
"""Seconds after which fewer steps are enough."""

WORTH_SAYING = 10.0
"""Seconds from which an estimate is printed; the bar shows the rest."""


class TimeEstimate(RunObserver):
    """Prints how long the run will take and what it needs, once the first steps have been timed."""

    def __init__(
        self, total: int, memory: Callable[[], str] = lambda: "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.memory, self.clock = total, memory, clock
        self.first, self.began, self.printed = 0, 0.0, False

    def started(self, step: int) -> None:
        self.first, self.printed = step, False

    def after_step(self, step: int) -> None:
        timed = step - self.first - WARM_UP
        if timed == 0:
            self.began = self.clock()
        if timed < 1 or self.printed:
            return
        seconds = self.clock() - self.began
        if timed < MEASURED and seconds < SLOW:
            return
        self.printed = True
        left = seconds / timed * (self.total - step)
        if left < WORTH_SAYING:
            return
        steps = f"step {step}" if timed == 1 else f"steps {step - timed + 1} to {step}"
        memory = self.memory()
        tqdm.write(
            f"about {duration(left)} for {self.total - step:,} more steps{memory and f', {memory}'} "
            f"(measured on {steps}; validations and samples come on top)"
        )


def duration(seconds: float) -> str:
    """ "40 seconds", "12 minutes", "3 hours 20 minutes"."""
    if seconds < 60:
        return f"{max(1, round(seconds))} second{'s' if round(seconds) > 1 else ''}"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    parts = [f"{n} {unit}{'s' if n > 1 else ''}" for n, unit in ((hours, "hour"), (rest, "minute")) if n]
    return " ".join(parts)
