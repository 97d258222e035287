"""A few cases of every parser each time, and the limits themselves. `make fuzz` runs many."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.fuzz.campaign import campaign
from tests.fuzz.every import PARSERS
from tests.fuzz.limits import MIB
from tests.fuzz.parser import Parser, Target

CASES = int(os.environ.get("FUZZ_CASES", "60"))


@pytest.mark.parametrize("name", PARSERS)
def test_it_is_read_or_refused_in_one_sentence(name: str) -> None:
    parser = PARSERS[name]
    # Bombs are large to make; tests of their own see to them.
    found = campaign(parser, CASES, first=100 if parser.memory > 1024 * MIB else 0)
    assert not found.faults, "\n".join(found.faults)
    assert found.cases == CASES and found.accepted + found.refused == CASES
    assert found.accepted and found.refused, "cases that are all good, or all bad from the first byte on, show nothing"


def test_a_case_can_be_made_again(tmp_path: Path) -> None:
    parser = PARSERS["expressions (MDETR)"]
    targets = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        targets.append(parser.make(tmp_path / folder))
    one, other = ([parser.case(target, number) for number in range(100)] for target in targets)
    assert one == other and len(set(one)) > 90


def broken(what: str) -> Parser:
    """A parser that does wrong at its third case."""

    def make(folder: Path) -> Target:
        file = folder / "file"
        seen: list[bytes] = []

        def read() -> None:
            seen.append(file.read_bytes())
            if len(seen) == 3:
                wrongs[what]()

        return Target(file, [b"sample"], read)

    return Parser(f"broken: {what}", make, memory=64 * MIB)


def hang() -> None:
    until = time.process_time() + 30
    while time.process_time() < until:
        pass


wrongs = {
    "an error of another kind": lambda: [][0],
    "a hang": hang,
    "memory": lambda: bytearray(200 * MIB),
    "the end of the process": lambda: os.abort(),
}


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("an error of another kind", "IndexError"),
        ("a hang", "TookTooLong: more than 1 s"),
        ("memory", "MemoryError"),
        ("the end of the process", "the process ended with signal 6"),
    ],
)
def test_what_is_wrong_with_a_parser_is_found(what: str, says: str) -> None:
    found = campaign(broken(what), 10, seconds=1)
    assert found.cases == 10
    assert f"broken: {what}, case 2: " in found.faults[0] and says in found.faults[0]
    assert found.faults[0].endswith(f"to repeat it: python -m tests.fuzz 'broken: {what}' --case 2")
