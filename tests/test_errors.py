"""One sentence on one line, whatever it quotes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpt.errors import LONGEST, DataError, UserError, fail, run_command


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("there is no file a.txt", "there is no file a.txt"),
        ("é, ü, 猫", "é, ü, 猫"),
        ("one\nand two\r", "one and two\\r"),
        ("\x1b[2Jit cleared the screen", "\\x1b[2Jit cleared the screen"),
        ("half \ud800 of it", "half \\ud800 of it"),
        ("turned \u202e round", "turned \\u202e round"),
    ],
)
def test_what_is_quoted_cannot_steer_the_terminal(said: str, shown: str) -> None:
    assert str(UserError(said)) == shown
    assert str(DataError(said)) == shown


def test_an_endless_sentence_keeps_its_beginning_and_its_end() -> None:
    sentence = str(UserError(f"the name {'a' * 10**6} is too long"))
    assert len(sentence) == LONGEST
    assert len(str(UserError("\udcff" * 10**6))) == LONGEST
    assert sentence.startswith("the name aaa") and sentence.endswith("aaa is too long") and " … " in sentence


def test_what_cannot_be_opened_is_told_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command((tmp_path / ("a" * 300)).read_text) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.endswith(": File name too long\n") and said.count("\n") == 1


def test_other_errors_stay_what_they_are() -> None:
    def broken() -> None:
        raise OSError("a device of ours")

    with pytest.raises(OSError, match="of ours"):
        run_command(broken)
    with pytest.raises(UserError, match="plainly"):
        fail("plainly")
