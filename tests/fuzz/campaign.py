"""Run many cases of one parser in a child process that is watched from outside."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import multiprocessing
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dpt.errors import UserError
from tests.fuzz.limits import TimeLimitExceeded, limit_memory, status, time_limit
from tests.fuzz.parser import Parser

SECONDS = 5.0
"""Processor time for one case."""
SILENCE = 120.0
"""Seconds without a finished case after which the process counts as hung."""
EXIT_SECONDS = 10.0
"""For a child that has reported its result to end."""
IN_MEMORY = Path("/dev/shm")
"""Faster than a disk."""
FORK = multiprocessing.get_context("fork")


@dataclass
class CampaignResult:
    """Outcomes of the cases."""

    parser: str
    cases: int = 0
    accepted: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    """Anything but a UserError, with the number of the case and how to repeat it."""
    slowest: float = 0.0
    slowest_case: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0

    def add(self, other: CampaignResult) -> None:
        self.cases += other.cases
        self.accepted += other.accepted
        self.refused += other.refused
        self.faults += other.faults
        if other.slowest > self.slowest:
            self.slowest, self.slowest_case = other.slowest, other.slowest_case
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)
        self.seconds += other.seconds


def campaign(parser: Parser, cases: int, first: int = 0, seconds: float = SECONDS) -> CampaignResult:
    """If the process dies, its case is a fault and a new process continues after it."""
    total = CampaignResult(parser.name)
    reached = FORK.Value("q", first, lock=False)
    while reached.value < first + cases:
        start = reached.value
        here, there = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_work, args=(parser, start, first + cases, seconds, reached, there))
        process.start()
        there.close()
        result = _watch(process, here, reached)
        if result is not None:
            total.add(result)
            return total
        number = reached.value
        ending = f"signal {-process.exitcode}" if (process.exitcode or 0) < 0 else f"exit code {process.exitcode}"
        lost = CampaignResult(parser.name, number + 1 - start)
        lost.faults = [_fault(parser, number, f"the process ended with {ending}")]
        total.add(lost)
        reached.value = number + 1
    return total


def _watch(process: Any, pipe: Connection, reached: Any) -> CampaignResult | None:
    last, since = reached.value, time.monotonic()
    result: CampaignResult | None = None
    while result is None:
        with contextlib.suppress(EOFError):
            if pipe.poll(0.2):
                result = pipe.recv()
                break
            if reached.value != last:
                last, since = reached.value, time.monotonic()
            if time.monotonic() - since < SILENCE:
                continue
            process.kill()
        break
    process.join(EXIT_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    return result


def _work(parser: Parser, first: int, end: int, seconds: float, reached: Any, pipe: Connection) -> None:
    faulthandler.disable()  # a case that aborts is a finding of the campaign, not of pytest
    with tempfile.TemporaryDirectory(prefix="dpt-fuzz-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        target = parser.make(Path(folder))
        limit_memory(parser.memory)
        resident, began, result = status("VmRSS"), time.monotonic(), CampaignResult(parser.name)
        for number in range(first, end):
            reached.value = number
            target.file.write_bytes(parser.case(target, number))
            started = time.process_time()
            outcome, message = attempt(target.read, seconds)
            spent = time.process_time() - started
            result.cases += 1
            result.accepted += outcome == "accepted"
            result.refused += outcome == "refused"
            if outcome == "fault":
                result.faults.append(_fault(parser, number, message))
            if spent > result.slowest:
                result.slowest, result.slowest_case = spent, number
        result.peak_bytes, result.seconds = max(0, status("VmHWM") - resident), time.monotonic() - began
    pipe.send(result)
    pipe.close()


def attempt(read: Any, seconds: float = SECONDS) -> tuple[str, str]:
    """accepted, refused (a UserError with a proper sentence), or fault."""
    try:
        silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with silent[0], silent[1], time_limit(seconds):
            read()
    except UserError as error:
        sentence = str(error)
        if not sentence.strip():
            return "fault", "an error without a message"
        if "\n" in sentence:
            return "fault", f"an error of more than one line: {sentence[:300]!r}"
        try:
            sentence.encode()
        except UnicodeEncodeError:
            return "fault", f"an error that cannot be printed: {sentence[:300]!a}"
        return ("refused", sentence) if len(sentence) < 4000 else ("fault", f"a sentence of {len(sentence)} characters")
    except (Exception, TimeLimitExceeded) as error:
        return "fault", "".join(traceback.format_exception(error))[-1500:]
    return "accepted", ""


def _fault(parser: Parser, number: int, what: str) -> str:
    return f"{parser.name}, case {number}: {what}\nto repeat it: python -m tests.fuzz {parser.name!r} --case {number}"


def print_faults(result: CampaignResult) -> None:
    for fault in result.faults[:5]:
        print(fault, file=sys.stderr)
    if len(result.faults) > 5:
        print(f"and {len(result.faults) - 5} more", file=sys.stderr)
