"""Files and folders that appear under their name complete or not at all; checksums; locks."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from dpt.errors import UserError, reason

ABANDONED_AFTER_DAYS = 7
"""A temporary file of an unknown process is removed at that age; one of a dead process on this machine at once."""

_OWNER = re.compile(r"\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)\.")


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_folder(final: Path, *, replace: bool = False, advice: str = "") -> Iterator[Path]:
    """Yield a temporary folder; if the block succeeds, flush it to disk and rename it to `final`.

    An existing `final` must be an empty folder unless `replace` is set. `advice` is appended to the error message.
    """
    final = Path(os.path.abspath(final))  # noqa: PTH100 - "." and ".." have no siblings; links stay as they are
    if not replace:
        refuse_nonempty(final)
    made = _first_missing(final.parent)
    work = _temporary_name(final)
    try:
        work.mkdir(parents=True)
        yield work
        for path in sorted(work.rglob("*")):
            flush(path)
        flush(work)
        if not replace:
            refuse_nonempty(final)
        if final.exists():
            shutil.rmtree(final)
        work.rename(final)
        flush(final.parent)
    except OSError as error:
        raise UserError(f"the folder {final} cannot be written: {reason(error)}{advice}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
        _remove_if_empty(final, made)


@contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """Yield a temporary path; if the block succeeds, flush that file to disk and rename it to `final`."""
    work = _temporary_name(final)
    try:
        yield work
        flush(work)
        work.replace(final)
        flush(final.parent)
    finally:
        work.unlink(missing_ok=True)


@contextmanager
def atomic_new_file(final: Path) -> Iterator[Path]:
    """As `atomic_file`, but refuse to replace an existing file; missing parent folders are created."""
    final = Path(os.path.abspath(final))  # noqa: PTH100 - links stay as they are
    made = _first_missing(final.parent)
    work = final
    try:
        refuse_existing(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        work = _temporary_name(final)
        yield work
        flush(work)
        _link_to_final(work, final)
        flush(final.parent)
    except OSError as error:
        raise UserError(f"the file {final} cannot be written: {reason(error)}") from None
    finally:
        if work != final:
            with suppress(OSError):
                work.unlink(missing_ok=True)
        _remove_if_empty(final, made)


class NumberedFolder:
    """A folder being written in `work`; `final` is its name once it is complete."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.final: Path | None = None


@contextmanager
def numbered_folder(parent: Path, stem: str) -> Iterator[NumberedFolder]:
    """Yield a temporary folder; if the block succeeds, rename it to parent/STEM-001 or the next free number."""
    made = _first_missing(parent)
    try:
        work = _make_temporary_folder(parent / "partial")
    except OSError as error:
        _remove_if_empty(parent / "partial", made)
        raise UserError(f"the output folder {parent} cannot be written to: {reason(error)}") from None
    folder = NumberedFolder(work)
    try:
        yield folder
        folder.final = _rename_to_free_number(work, parent, stem)
    except OSError as error:
        raise UserError(f"the results cannot be written to {parent}: {reason(error)}") from None
    finally:
        if folder.final is None:
            shutil.rmtree(work, ignore_errors=True)
            _remove_if_empty(parent / "partial", made)


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty temporary folder in `parent` and remove it afterwards."""
    work = _make_temporary_folder(parent / name)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def exclusive_lock(file: Path, message: str) -> Iterator[None]:
    """Hold a lock on `file`, created if missing; raise UserError(message) if another process holds it.

    The lock ends with the process, however it ends, and forked workers do not inherit it. Nothing else in this process
    may open and close `file` meanwhile: that would release it.
    """
    import fcntl

    with file.open("a") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(message) from None
        except OSError:
            pass  # a file system without locks is trusted to have one writer
        yield


def refuse_existing(final: Path) -> None:
    if os.path.lexists(final):
        raise UserError(f"{final} already exists; nothing was written")


def refuse_nonempty(final: Path) -> None:
    try:
        taken = final.is_symlink() or (final.exists() and (not final.is_dir() or any(final.iterdir())))
    except OSError as error:
        raise UserError(f"the folder {final} cannot be read: {reason(error)}") from None
    if taken:
        raise UserError(f"{final} already exists and is not an empty folder; nothing was written")


def remove_leftovers(folder: Path, stem: str = "") -> None:
    """Remove temporary files and folders (of names that begin with `stem`) whose process was killed."""
    for path in folder.glob(f".{_escaped(stem)}*"):
        if _is_abandoned(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def _temporary_name(final: Path) -> Path:
    """A free hidden name beside `final` that says which process of which machine uses it."""
    with suppress(OSError):
        remove_leftovers(final.parent, f"{final.name}.")
    for number in count():
        name = f".{final.name}.{_machine()}-{os.getpid()}.{f'{number}.' if number else ''}tmp"
        if not os.path.lexists(work := final.with_name(name)):
            return work
    raise AssertionError("unreachable")


def _make_temporary_folder(final: Path) -> Path:
    """Create a hidden folder beside `final`, and its missing parents, that no other thread or process uses."""
    for _ in range(100):
        work = _temporary_name(final)
        with suppress(FileExistsError, FileNotFoundError):  # another run took the name, or removed an empty parent
            work.mkdir(parents=True)
            return work
    work.mkdir(parents=True)
    return work


def _machine() -> str:
    """Eight digits for this host and its set of process numbers, which containers may have to themselves."""
    try:
        processes = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - its target is not a path
    except OSError:
        processes = ""
    return hashlib.sha256(f"{socket.gethostname()} {processes}".encode()).hexdigest()[:8]


def _is_abandoned(path: Path) -> bool:
    owner = _OWNER.search(path.name)
    if owner is None or not path.name.endswith(".tmp"):
        return False
    if owner["machine"] == _machine():
        return not _is_running(int(owner["pid"]))
    try:
        return time.time() - path.lstat().st_mtime > ABANDONED_AFTER_DAYS * 86400
    except OSError:
        return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # of another user
    return True


def _escaped(stem: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", stem)


def _link_to_final(work: Path, final: Path) -> None:
    """A link, unlike a rename, never replaces a file that another process has written meanwhile."""
    try:
        final.hardlink_to(work)
    except FileExistsError:
        refuse_existing(final)
        raise
    except OSError:  # a file system without links
        refuse_existing(final)
        work.rename(final)


def _rename_to_free_number(work: Path, parent: Path, stem: str) -> Path:
    for number in count(1):
        final = parent / f"{stem}-{number:03d}"
        if os.path.lexists(final):
            continue
        try:
            # Renaming onto a folder with content fails, so two runs cannot take one name.
            work.rename(final)
        except OSError:
            if not final.exists():
                raise
            continue
        return final
    raise AssertionError("unreachable")


def flush(path: Path) -> None:
    """Write a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_missing(folder: Path) -> Path | None:
    """The outermost folder that creating `folder` will create."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    return missing[-1] if missing else None


def _remove_if_empty(final: Path, topmost: Path | None) -> None:
    """Remove the parents that were created for `final`, if it was not written."""
    if topmost is None or final.exists():
        return
    for path in final.parents:
        try:
            path.rmdir()
        except OSError:
            return
        if path == topmost:
            return
