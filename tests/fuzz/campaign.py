"""Many cases of one parser, in a process of their own that is watched from outside."""

from __future__ import annotations

import contextlib
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
from tests.fuzz.limits import TookTooLong, limit_memory, status, time_limit
from tests.fuzz.parser import Parser

SECONDS = 5.0
"""Of processor time, for one case."""
SILENCE = 120.0
"""After so many seconds without a finished case the process is taken to hang."""
IN_MEMORY = Path("/dev/shm")
"""A disk would be most of the work."""
FORK = multiprocessing.get_context("fork")


@dataclass
class Found:
    """What became of the cases."""

    parser: str
    cases: int = 0
    accepted: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    """Anything but a typed error: each with its number, and how to repeat it."""
    slowest: float = 0.0
    slowest_case: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0

    def add(self, other: Found) -> None:
        self.cases += other.cases
        self.accepted += other.accepted
        self.refused += other.refused
        self.faults += other.faults
        if other.slowest > self.slowest:
            self.slowest, self.slowest_case = other.slowest, other.slowest_case
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)
        self.seconds += other.seconds


def campaign(parser: Parser, cases: int, first: int = 0, seconds: float = SECONDS) -> Found:
    """A process that dies takes its case with it, and another goes on behind that."""
    total = Found(parser.name)
    reached = FORK.Value("q", first, lock=False)
    while reached.value < first + cases:
        begun = reached.value
        here, there = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_work, args=(parser, begun, first + cases, seconds, reached, there))
        process.start()
        there.close()
        told = _watch(process, here, reached)
        if told is not None:
            total.add(told)
            return total
        number = reached.value
        how = f"signal {-process.exitcode}" if (process.exitcode or 0) < 0 else f"exit code {process.exitcode}"
        lost = Found(parser.name, number + 1 - begun)
        lost.faults = [_fault(parser, number, f"the process ended with {how}")]
        total.add(lost)
        reached.value = number + 1
    return total


def _watch(process: Any, pipe: Connection, reached: Any) -> Found | None:
    last, since = reached.value, time.monotonic()
    told: Found | None = None
    while told is None:
        with contextlib.suppress(EOFError):
            if pipe.poll(0.2):
                told = pipe.recv()
                break
            if reached.value != last:
                last, since = reached.value, time.monotonic()
            if time.monotonic() - since < SILENCE:
                continue
            process.kill()
        break
    process.join()
    return told


def _work(parser: Parser, first: int, end: int, seconds: float, reached: Any, pipe: Connection) -> None:
    with tempfile.TemporaryDirectory(prefix="dpt-fuzz-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        target = parser.make(Path(folder))
        limit_memory(parser.memory)
        resident, begun, found = status("VmRSS"), time.monotonic(), Found(parser.name)
        for number in range(first, end):
            reached.value = number
            target.file.write_bytes(parser.case(target, number))
            started = time.process_time()
            outcome, told = attempt(target.read, seconds)
            spent = time.process_time() - started
            found.cases += 1
            found.accepted += outcome == "accepted"
            found.refused += outcome == "refused"
            if outcome == "fault":
                found.faults.append(_fault(parser, number, told))
            if spent > found.slowest:
                found.slowest, found.slowest_case = spent, number
        found.peak_bytes, found.seconds = max(0, status("VmHWM") - resident), time.monotonic() - begun
    pipe.send(found)
    pipe.close()


def attempt(read: Any, seconds: float = SECONDS) -> tuple[str, str]:
    """accepted, refused (a typed error with a sentence), or fault."""
    try:
        silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with silent[0], silent[1], time_limit(seconds):
            read()
    except UserError as error:
        sentence = str(error)
        if not sentence.strip():
            return "fault", "a typed error that says nothing"
        if "\n" in sentence:
            return "fault", f"a typed error of more than one line: {sentence[:300]!r}"
        try:
            sentence.encode()
        except UnicodeEncodeError:
            return "fault", f"a typed error that cannot be printed: {sentence[:300]!a}"
        return ("refused", sentence) if len(sentence) < 4000 else ("fault", f"a sentence of {len(sentence)} characters")
    except (Exception, TookTooLong) as error:
        return "fault", "".join(traceback.format_exception(error))[-1500:]
    return "accepted", ""


def _fault(parser: Parser, number: int, what: str) -> str:
    return f"{parser.name}, case {number}: {what}\nto repeat it: python -m tests.fuzz {parser.name!r} --case {number}"


def say(found: Found) -> None:
    for fault in found.faults[:5]:
        print(fault, file=sys.stderr)
    if len(found.faults) > 5:
        print(f"and {len(found.faults) - 5} more", file=sys.stderr)
