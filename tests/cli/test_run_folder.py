"""Run folders: complete or absent, each with its own name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from dpt import files
from dpt.cli.common.console import new_run_folder, read_prompts, slug
from dpt.errors import UserError


def test_concurrent_runs_get_different_folders(tmp_path: Path) -> None:
    together = Barrier(8, timeout=60)

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


def test_temporary_name_taken_by_another_thread_is_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter([tmp_path / "taken", tmp_path / "gone" / "free"])
    (tmp_path / "taken").mkdir()
    monkeypatch.setattr(files, "_temporary_name", lambda final: next(names))
    with new_run_folder(tmp_path / "gone", "run") as folder:
        assert folder.work == tmp_path / "gone" / "free"
    assert folder.final == tmp_path / "gone" / "run-001" and (tmp_path / "taken").is_dir()


def test_folder_appears_only_when_complete(tmp_path: Path) -> None:
    with new_run_folder(tmp_path, "run") as folder:
        (folder.work / "half").touch()
        assert not (tmp_path / "run-001").exists()
    assert (tmp_path / "run-001" / "half").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_removes_the_created_folders(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_run_folder(tmp_path / "a/b", "run") as folder:
        (folder.work / "half").touch()
        raise error
    assert list(tmp_path.iterdir()) == []


def test_run_folder_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    with new_run_folder(tmp_path, "run") as folder:
        pass
    assert folder.final is not None
    assert folder.final.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_names_are_readable_and_safe() -> None:
    assert slug("A red circle, left of ../../etc!") == "a-red-circle-left-of-etc"
    assert slug("дом") == "run"
    assert len(slug("word " * 100)) <= 48


def test_prompts_are_split_at_newlines_only(tmp_path: Path) -> None:
    text, jsonl = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    text.write_bytes("\ufeffa red cup\r\n\n two\x0ccups\u2028and a bowl\n".encode())
    assert read_prompts(text) == ["a red cup", "two\x0ccups\u2028and a bowl"]
    jsonl.write_bytes('\ufeff{"prompt": "a\u2028cup"}\n{"prompt": " b "}'.encode())
    assert read_prompts(jsonl) == ["a\u2028cup", "b"]
    text.write_bytes(b"a caf\xe9")
    with pytest.raises(UserError, match=r"prompts.txt is not UTF-8 text \(byte 5\)"):
        read_prompts(text)
