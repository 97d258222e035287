from __future__ import annotations

from pathlib import Path

import pytest

from dpt.cli.main import run
from dpt.errors import UserError, run_command


def export(out: Path, *words: str) -> None:
    run(["scenes", "export", "--out", str(out), *words])


def test_the_command_writes_a_data_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(tmp_path / "data", "--num", "3", "--seed", "2", "--world", "pocket", "--val", "2")
    assert (tmp_path / "data/manifest.json").is_file()
    shown = capsys.readouterr()
    assert "manifest.json" in shown.out
    assert "train" in shown.err, "a progress bar"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num", "0"), "--num"),
        (("--num", "-3"), "--num"),
        (("--num", "20000000"), "--num"),
        (("--num", "3", "--val", "0"), "--val"),
        (("--num", "3", "--world", "flat"), "'flat'; the worlds are full, pocket"),
        (("--num", "3", "--format", "gif"), "jpg or png"),
    ],
)
def test_invalid_input_is_one_sentence_and_writes_nothing(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        export(tmp_path / "data", *words)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_non_empty_folder_is_refused_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").touch()
    assert run_command(lambda: export(tmp_path, "--num", "3")) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert run_command(lambda: export(tmp_path / "mine" / "below", "--num", "3")) == 2
