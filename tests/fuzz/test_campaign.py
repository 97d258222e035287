"""A few cases of each parser, and the campaign itself. `make fuzz` runs ten thousand cases of each."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.fuzz.campaign import CampaignResult, campaign
from tests.fuzz.limits import MIB
from tests.fuzz.parser import Parser, Target
from tests.fuzz.parsers import PARSERS
from tests.fuzz.summary import write_summary

CASES = int(os.environ.get("FUZZ_CASES", "60"))
QUICK = (
    "captions (COCO)",
    "record: adapter",
    "weights: LoRA of kohya",
    "weights: published checkpoint",
    "pictures: PNG",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in PARSERS]
)
def test_broken_files_are_read_or_refused_in_one_sentence(name: str) -> None:
    parser = PARSERS[name]
    # The hostile images are large to make; tests of their own read them.
    result = campaign(parser, CASES, first=100 if parser.memory > 1024 * MIB else 0)
    assert not result.faults, "\n".join(result.faults)
    assert result.cases == CASES and result.accepted + result.refused == CASES
    assert result.accepted and result.refused, (
        "cases that are all valid, or all refused from the first byte, test nothing"
    )


def test_cases_are_reproducible(tmp_path: Path) -> None:
    parser = PARSERS["expressions (MDETR)"]
    targets = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        targets.append(parser.make(tmp_path / folder))
    first, second = ([parser.case(target, number) for number in range(100)] for target in targets)
    assert first == second and len(set(first)) > 90


def broken(what: str) -> Parser:
    """A parser that fails at its third case."""

    def make(folder: Path) -> Target:
        file = folder / "file"
        contents: list[bytes] = []

        def read() -> None:
            contents.append(file.read_bytes())
            if len(contents) == 3:
                FAILURES[what]()

        return Target(file, [b"sample"], read)

    return Parser(f"broken: {what}", make, memory=64 * MIB)


def hang() -> None:
    until = time.process_time() + 30
    while time.process_time() < until:
        pass


FAILURES = {
    "an error of another kind": lambda: [][0],
    "a hang": hang,
    "memory": lambda: bytearray(200 * MIB),
    "the end of the process": lambda: os.abort(),
}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("an error of another kind", "IndexError"),
        ("a hang", "TimeLimitExceeded: more than 1 s"),
        ("memory", "MemoryError"),
        ("the end of the process", "the process ended with signal 6"),
    ],
)
def test_parser_faults_are_reported(what: str, message: str) -> None:
    result = campaign(broken(what), 10, seconds=1)
    assert result.cases == 10
    assert f"broken: {what}, case 2: " in result.faults[0] and message in result.faults[0]
    assert result.faults[0].endswith(f"to repeat it: python -m tests.fuzz 'broken: {what}' --case 2")


def test_parsers_not_run_again_keep_their_row(tmp_path: Path) -> None:
    first, second = list(PARSERS)[:2]
    write_summary([CampaignResult(first, 10, 4, 6), CampaignResult(second, 10, 4, 6)], tmp_path)
    write_summary([CampaignResult(second, 20, 8, 12)], tmp_path)
    rows = json.loads((tmp_path / "fuzz.json").read_text())["parsers"]
    assert [(row["parser"], row["cases"]) for row in rows] == [(first, 10), (second, 20)]
    assert "| all | 30 | 18 | 12 | 0 |" in (tmp_path / "fuzz.md").read_text()
