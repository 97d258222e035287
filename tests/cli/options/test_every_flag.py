"""No flag is without a check: a new one has to say what it does, and to show it."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable

import pytest

from dpt.cli.train import stages as train_stage1
from dpt.cli.train import stages as train_stage2
from dpt.cli.txt2img import main as txt2img
from tests.cli.options.checks import Proven, Table
from tests.cli.options.report import TABLES

MAIN: dict[str, Callable[[list[str]], int]] = {
    "train_stage1.py": train_stage1.main_stage1,
    "train_stage2.py": train_stage2.main_stage2,
    "txt2img.py": txt2img.main,
}


def flags_of(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """As the command itself tells them."""
    with pytest.raises(SystemExit):
        main(["--help"])
    plain = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    found: set[str] = set()
    for line in re.findall(r"^[│|\s]*(--?\w.*)$", plain, re.M):
        found |= set(re.findall(r"--(\w+)", line.split("  ")[0]))
    return found - {"help", "gpuid"}


@pytest.mark.parametrize("command", MAIN)
def test_every_flag_has_a_check(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = flags_of(MAIN[command], capsys)
    assert len(flags) > 40
    assert flags - set(TABLES[command]) == set(), "these flags do not say what they do: give each a check"
    assert set(TABLES[command]) - flags == set(), "these checks are of no flag"


@pytest.mark.parametrize("checks", TABLES.values(), ids=list(TABLES))
def test_what_another_test_proves_is_there_and_speaks_of_the_flag(checks: Table) -> None:
    for flag, check in checks.items():
        if isinstance(check, Proven):
            check.function()
            assert f"--{flag}" in inspect.getsource(importlib.import_module(check.module)), flag
