"""Files and folders appear complete or not at all, and leftovers of a kill are removed on the next start."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from dpt.errors import UserError
from dpt.files import atomic_file, atomic_folder, atomic_new_file, exclusive_lock, numbered_folder, sha256

ROOT = Path(__file__).parents[1]


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_folder_appears_only_when_complete(tmp_path: Path) -> None:
    final = tmp_path / "a" / "b"
    with atomic_folder(final) as work:
        (work / "file").write_text("content")
        assert not final.exists()
    assert listing(tmp_path) == ["a", "a/b", "a/b/file"]


def test_existing_empty_folder_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as work:
        (work / "file").touch()
    assert listing(tmp_path) == ["out", "out/file"]


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "a" / "b") as work:
        (work / "file").touch()
        raise KeyboardInterrupt
    assert listing(tmp_path) == []


def test_existing_content_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="already"), atomic_folder(taken):
            pytest.fail("never gets here")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unwritable_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be"), atomic_folder(tmp_path / "file" / "out"):
        pytest.fail("never gets here")
    assert listing(tmp_path) == ["file"]


def test_an_error_while_writing_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No space left"), atomic_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert listing(tmp_path) == []


def test_file_appears_only_when_complete(tmp_path: Path) -> None:
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


def test_new_file_appears_only_when_complete(tmp_path: Path) -> None:
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
def test_new_file_never_replaces_another(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    final = tmp_path / "file"
    with pytest.raises(UserError, match="file already exists; nothing was written"), atomic_new_file(final) as work:
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


KILLED = """
import os, signal, sys
from pathlib import Path
from dpt import files
root = Path(sys.argv[1])
with files.numbered_folder(root, "run") as run, files.atomic_new_file(root / "new") as new:
    with files.atomic_folder(root / "folder") as folder, files.scratch_folder(root, "new.parts") as scratch:
        for path in (run.work / "picture", new, folder / "file", scratch / "file"):
            path.write_text("half")
        print("ready", flush=True)
        signal.pause()
"""


def test_leftovers_of_killed_processes_are_removed_and_those_of_running_ones_kept(tmp_path: Path) -> None:
    (tmp_path / ".run.tmp").write_text("mine")
    (tmp_path / ".new.1234abcd-1.tmp").write_text("of another machine, lately")
    (tmp_path / ".new.1234abcd-2.tmp").write_text("of another machine, long ago")
    os.utime(tmp_path / ".new.1234abcd-2.tmp", (0, time.time() - 8 * 86400))
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"

    def start() -> list[str]:
        with numbered_folder(tmp_path, "run"), atomic_new_file(tmp_path / "new") as new:
            new.touch()
        with atomic_folder(tmp_path / "folder"):
            pass
        (tmp_path / "new").unlink()
        (tmp_path / "folder").rmdir()
        return [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]

    kept = [".run.tmp", ".new.1234abcd-1.tmp"]
    assert len(start()) == len(kept) + 4, "the other process is at work"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert sorted(start()) == sorted(kept)


def test_numbered_folders_take_the_next_free_name(tmp_path: Path) -> None:
    (tmp_path / "runs" / "a-001").mkdir(parents=True)
    with numbered_folder(tmp_path / "runs", "a") as folder:
        (folder.work / "file").touch()
    assert folder.final == tmp_path / "runs" / "a-002"
    with pytest.raises(KeyboardInterrupt), numbered_folder(tmp_path / "other", "a"):
        raise KeyboardInterrupt
    assert listing(tmp_path) == ["runs", "runs/a-001", "runs/a-002", "runs/a-002/file"]


def test_folder_may_replace_another(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with atomic_folder(tmp_path / "out", replace=True) as work:
        (work / "new").touch()
    assert listing(tmp_path) == ["out", "out/new"]


def try_lock(file: Path, seconds: float = 0.0) -> None:
    with exclusive_lock(file, "locked"):
        time.sleep(seconds)


def test_lock_is_exclusive_and_not_inherited_by_workers(tmp_path: Path) -> None:
    file, fork = tmp_path / "lock", get_context("fork")
    with exclusive_lock(file, "locked"):
        other = fork.Process(target=try_lock, args=(file,))
        other.start()
        other.join()
        assert other.exitcode == 1
        worker = fork.Process(target=time.sleep, args=(30,))
        worker.start()
    later = fork.Process(target=try_lock, args=(file,))
    later.start()
    later.join()
    worker.kill()
    worker.join()
    assert later.exitcode == 0, "a worker that lives on does not keep the lock"


def test_sha256_hashes_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert sha256(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()
