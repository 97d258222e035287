from __future__ import annotations

from pathlib import Path

import pytest

from dpt.errors import UserError
from dpt.files import atomic_file, atomic_folder, atomic_new_file


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    final = tmp_path / "a" / "b"
    with atomic_folder(final) as work:
        (work / "file").write_text("content")
        assert not final.exists()
    assert listing(tmp_path) == ["a", "a/b", "a/b/file"]


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as work:
        (work / "file").touch()
    assert listing(tmp_path) == ["out", "out/file"]


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "a" / "b") as work:
        (work / "file").touch()
        raise KeyboardInterrupt
    assert listing(tmp_path) == []


def test_a_full_folder_and_a_file_are_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="already"), atomic_folder(taken):
            pytest.fail("never gets here")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be"), atomic_folder(tmp_path / "file" / "out"):
        pytest.fail("never gets here")
    assert listing(tmp_path) == ["file"]


def test_an_error_while_writing_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No space left"), atomic_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert listing(tmp_path) == []


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    final = tmp_path / "file"
    for content in ("one", "two"):
        with atomic_file(final) as work:
            work.write_text(content)
            assert not final.exists() or final.read_text() != content
        assert final.read_text() == content
    with pytest.raises(KeyboardInterrupt), atomic_file(final) as work:
        work.write_text("half")
        raise KeyboardInterrupt
    assert listing(tmp_path) == ["file"] and final.read_text() == "two"


def test_a_new_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    final = tmp_path / "a" / "file"
    with pytest.raises(KeyboardInterrupt), atomic_new_file(final) as work:
        work.write_text("half")
        raise KeyboardInterrupt
    assert listing(tmp_path) == []
    with atomic_new_file(final) as work:
        work.write_text("one")
        assert not final.exists()
    assert listing(tmp_path) == ["a", "a/file"] and final.read_text() == "one"


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_replaces_nothing(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    final = tmp_path / "file"
    with pytest.raises(UserError, match="file is there already; nothing was written"), atomic_new_file(final) as work:
        work.write_text("mine")
        final.write_text("of somebody else, meanwhile")
    assert final.read_text() == "of somebody else, meanwhile"
    with pytest.raises(UserError, match="already"), atomic_new_file(final):
        pytest.fail("never gets here")
    with atomic_new_file(tmp_path / "other") as work:
        work.write_text("mine")
    assert listing(tmp_path) == ["file", "other"]


def test_a_new_file_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), atomic_new_file(tmp_path / "file" / "out"):
        pytest.fail("never gets here")
    assert listing(tmp_path) == ["file"]
