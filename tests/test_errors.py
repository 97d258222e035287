"""User errors and system faults are one sentence on one line, with exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dpt.errors import LONGEST, DataError, UserError, fail, run_command

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("there is no file a.txt", "there is no file a.txt"),
        ("é, ü, 猫", "é, ü, 猫"),
        ("one\nand two\r", "one and two\\r"),
        ("\x1b[2Jit cleared the screen", "\\x1b[2Jit cleared the screen"),
        ("half \ud800 of it", "half \\ud800 of it"),
        ("turned \u202e round", "turned \\u202e round"),
    ],
)
def test_control_characters_are_escaped_in_messages(message: str, shown: str) -> None:
    assert str(UserError(message)) == shown
    assert str(DataError(message)) == shown


def test_a_package_that_is_not_installed_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    assert run_command(lambda: missing("torch")) == 2
    assert capsys.readouterr().err.startswith(f"error: torch is not installed for {sys.executable}: activate")
    with pytest.raises(ModuleNotFoundError):
        run_command(lambda: missing("dpt.nothing"))
    script = "import importlib.util as u; u.find_spec = lambda name: None; import dpt.cli.main"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: tyro is not installed for "), done.stderr


def test_long_message_keeps_its_beginning_and_end() -> None:
    sentence = str(UserError(f"the name {'a' * 10**6} is too long"))
    assert len(sentence) == LONGEST
    assert len(str(UserError("\udcff" * 10**6))) == LONGEST
    assert sentence.startswith("the name aaa") and sentence.endswith("aaa is too long") and " … " in sentence


def test_unreadable_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command((tmp_path / ("a" * 300)).read_text) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.endswith(": File name too long\n") and message.count("\n") == 1


def test_programming_errors_keep_their_traceback() -> None:
    def broken() -> None:
        raise OSError("a bug of ours")

    with pytest.raises(OSError, match="of ours"):
        run_command(broken)
    with pytest.raises(UserError, match="plainly"):
        fail("plainly")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("I/O error: No space left on device (os error 28)")]
)
def test_full_disk_is_one_sentence_from_any_library(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("wrapped") from cause

    assert run_command(full) == 2
    message = capsys.readouterr().err
    assert message == "error: the output cannot be written: No space left on device; free some space, then run the " \
        "command again\n"  # fmt: skip


def run(words: Sequence[str], stdout: int) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "dpt", *words], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
    )
    return done.returncode, done.stderr


def test_unwritable_stdout_is_one_sentence() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    code, message = run(["--help"], full)
    os.close(full)
    assert code == 2 and message.count("\n") == 1 and "No space left on device" in message, message
    reader, closed = os.pipe()
    os.close(reader)
    code, message = run(["--help"], closed)
    os.close(closed)
    assert code == 2 and message.count("\n") == 1 and "Broken pipe" in message, message
