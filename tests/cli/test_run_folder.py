"""Run folders: complete or absent, and never twice the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from dpt.cli.common.run_folder import new_run_folder, slug


def test_runs_at_the_same_time_get_different_folders(tmp_path: Path) -> None:
    together = Barrier(8)

    def run(number: int) -> Path | None:
        with new_run_folder(tmp_path / "outputs", "same name") as folder:
            (folder.work / "who.txt").write_text(str(number))
            together.wait()
        return folder.final

    with ThreadPoolExecutor(8) as pool:
        finals = list(pool.map(run, range(8)))
    assert sorted(final.name for final in finals if final) == [f"same-name-{n:03d}" for n in range(1, 9)]
    assert [(final / "who.txt").read_text() for final in finals if final] == [str(n) for n in range(8)]
    assert len(list((tmp_path / "outputs").iterdir())) == 8


def test_nothing_is_visible_under_the_name_before_the_end(tmp_path: Path) -> None:
    with new_run_folder(tmp_path, "run") as folder:
        (folder.work / "half").touch()
        assert not (tmp_path / "run-001").exists()
    assert (tmp_path / "run-001" / "half").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_takes_back_the_folders_it_made(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_run_folder(tmp_path / "a/b", "run") as folder:
        (folder.work / "half").touch()
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_is_as_open_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    with new_run_folder(tmp_path, "run") as folder:
        pass
    assert folder.final is not None
    assert folder.final.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_names_are_readable_and_safe() -> None:
    assert slug("A red circle, left of ../../etc!") == "a-red-circle-left-of-etc"
    assert slug("дом") == "run"
    assert len(slug("word " * 100)) <= 48
